"""Operators of the networks: convolution, BatchNorm, resampling."""
