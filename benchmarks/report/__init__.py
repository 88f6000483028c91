"""Tables and pictures of what a throughput run wrote: ``python -m benchmarks.report --help``."""
