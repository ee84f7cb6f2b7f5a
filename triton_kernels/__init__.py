"""Triton kernels, one file an op; imported as ``vpgfast.triton_kernels``."""
