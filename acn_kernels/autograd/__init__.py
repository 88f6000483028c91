"""One autograd Function per operation; each runs on any backend's kernels."""
