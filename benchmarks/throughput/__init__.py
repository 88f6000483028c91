"""Throughput of an ACN against named peers: ``python -m benchmarks.throughput --help``."""
