"""Sides of a convolution's result, and its options for the libraries of functions."""

from __future__ import annotations

from collections.abc import Sequence

Pair = tuple[int, int]


def result_sides(sides: Sequence[int], kernel: Sequence[int], stride: Pair, padding: Pair, dilation: Pair) -> list[int]:
    """(H', W') of the result."""
    axes = zip(sides, kernel, stride, padding, dilation, strict=True)
    return [(side + 2 * pad - step * (taps - 1) - 1) // stride + 1 for side, taps, stride, pad, step in axes]


def geometry(stride: Pair, padding: Pair, dilation: Pair) -> dict[str, float]:
    """Options of the calls that convolve."""
    pairs = (("stride", stride), ("padding", padding), ("dilation", dilation))
    return {f"{name}{axis}": pair[axis] for name, pair in pairs for axis in (0, 1)}
