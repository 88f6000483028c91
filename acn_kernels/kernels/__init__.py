"""Triton kernels and their launchers, one file per operation. Nothing here knows autograd."""
