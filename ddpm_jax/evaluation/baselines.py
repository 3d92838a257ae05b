"""Codes without a network: what a model's bits per dimension have to be compared with."""

import math

import numpy as np

__all__ = ["histogram_bits_per_dim", "uniform_bits_per_dim"]


def uniform_bits_per_dim(levels: int) -> float:
    """log2(levels): every grey level of every pixel is as likely as any other."""
    return math.log2(levels)


def histogram_bits_per_dim(train: np.ndarray, held_out: np.ndarray, *, levels: int) -> float:
    """Cost of `held_out` under one histogram for each pixel, fitted on `train`.

    The pixels are independent. One count is added to each level (Laplace's rule), so that a level
    not seen in training costs much but not infinitely much.

    Args:
        train, held_out: uint8 `[n, height, width, channel]`, values below `levels`.
        levels: number of grey levels.

    Returns:
        Mean of -log2 p over all images and dimensions.
    """
    counts = np.stack([np.sum(train == level, axis=0) for level in range(levels)]) + 1.0
    bits = -np.log2(counts / (len(train) + levels))
    return float(np.mean(np.take_along_axis(bits, held_out.astype(np.intp), axis=0)))
