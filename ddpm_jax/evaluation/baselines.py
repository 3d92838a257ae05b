"""Codes without a network: what a model's bits per dimension have to be compared with."""

import math
from collections.abc import Iterable

import numpy as np

__all__ = ["histogram_bits_per_dim", "uniform_bits_per_dim"]


def uniform_bits_per_dim(levels: int) -> float:
    """log2(levels): every grey level of every pixel is as likely as any other."""
    return math.log2(levels)


def histogram_bits_per_dim(
    train: Iterable[np.ndarray], held_out: Iterable[np.ndarray], *, levels: int
) -> float:
    """Cost of `held_out` under one histogram for each pixel, fitted on `train`.

    The pixels are independent. One count is added to each level (Laplace's rule), so that a level
    not seen in training costs much but not infinitely much.

    Args:
        train, held_out: batches of uint8 `[n, height, width, channel]`, values below `levels`.
        levels: number of grey levels.

    Returns:
        Mean of -log2 p over all images and dimensions.
    """
    seen, fitted = _counts(train, levels)
    asked, _ = _counts(held_out, levels)
    bits = -np.log2((seen + 1.0) / (fitted + levels))
    return float(np.sum(asked * bits) / np.sum(asked))


def _counts(batches: Iterable[np.ndarray], levels: int) -> tuple[np.ndarray, int]:
    """How often each pixel has each level, `[pixels, levels]`, and the number of images."""
    total, count = np.zeros(1, np.int64), 0
    for images in batches:
        pixels = images.reshape(len(images), -1).astype(np.int64)
        pixels += levels * np.arange(pixels.shape[1])
        total = total + np.bincount(pixels.ravel(), minlength=levels * pixels.shape[1])
        count += len(images)
    return total.reshape(-1, levels), count
