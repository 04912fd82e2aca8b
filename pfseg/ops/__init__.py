"""Operators that Jittor lacks or computes otherwise; their C++ is in `cpu/` and `cuda/`, and `kernels` calls it."""
