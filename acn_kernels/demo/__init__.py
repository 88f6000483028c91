"""``acn-kernels demo``: an ACN and its residual twin on real digits, trained, cut and timed."""
