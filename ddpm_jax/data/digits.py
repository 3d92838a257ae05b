"""Scikit-learn's handwritten digits, the images that need no download."""

import numpy as np

from ddpm_jax.data.preparation import Preparation
from ddpm_jax.data.source import Arrays, ImageSet

__all__ = ["DIGITS_LEVELS", "DIGITS_SHAPE", "read_digits"]

DIGITS_LEVELS = 17
DIGITS_SHAPE = (8, 8, 1)
_TRAIN = 1437
"""Digits to train on; the other 360 of 1,797 are held out."""
_SPLIT_SEED = 0


def read_digits(preparation: Preparation) -> ImageSet:
    """All 1,797 of them, in one fixed random split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = preparation.of_array(digits.images[..., None].astype(np.uint8))  # whole, 0 to 16
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(images))
    train, held_out = (
        Arrays(images[part], labels[part], DIGITS_LEVELS, f"digits, {name}")
        for name, part in (("train", order[:_TRAIN]), ("held out", order[_TRAIN:]))
    )
    return ImageSet(
        "digits",
        train=train,
        held_out=held_out,
        levels=DIGITS_LEVELS,
        classes=tuple(str(digit) for digit in range(10)),
        preparation=str(preparation),
    )
