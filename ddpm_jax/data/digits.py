"""Scikit-learn's handwritten digits, the images that need no download."""

import numpy as np

from ddpm_jax.data.images import DataError
from ddpm_jax.data.preparation import STORED, Preparation
from ddpm_jax.data.source import Arrays, ImageSet
from ddpm_jax.errors import require

__all__ = ["DIGITS_LEVELS", "digits_shape", "read_digits"]

DIGITS_LEVELS = 17
_SHAPE = (8, 8, 1)
_TRAIN = 1437
"""Digits to train on; the other 360 of 1,797 are held out."""
_SPLIT_SEED = 0


def read_digits(preparation: Preparation = STORED) -> ImageSet:
    """All 1,797 of them, 8x8, 17 grey levels, in one fixed random split of 1,437 and 360.

    It is the split of all numbers that this project publishes. The data do not say who wrote a
    digit, so a writer's digits are in both parts.

    Raises:
        DataError: a preparation that digits cannot have, see `digits_shape`.

    Example:
        >>> from ddpm_jax.data import read_digits
        >>> digits = read_digits()
        >>> len(digits.train), len(digits.held_out), digits.image_shape, digits.levels
        (1437, 360, (8, 8, 1), 17)
    """
    require("the data set digits", "train", "sklearn")
    from sklearn.datasets import load_digits

    digits_shape(preparation)
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


def digits_shape(preparation: Preparation) -> tuple[int, int, int]:
    """(height, width, channel) of the prepared digits.

    Raises:
        DataError: a preparation that is for images with 256 levels, or a border that is too small.
    """
    if preparation.size is not None or preparation.grey:
        raise DataError(
            f"preparation.size is {preparation.size} and preparation.grey {preparation.grey};"
            " digits have 17 grey levels, and only images of 256 are resized or made grey"
        )
    return preparation.shape_of(_SHAPE)
