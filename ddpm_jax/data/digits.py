"""Scikit-learn's handwritten digits, which need no download."""

import numpy as np

from ddpm_jax.data.images import DataError
from ddpm_jax.data.preparation import STORED, Preparation
from ddpm_jax.data.source import Arrays, ImageSet
from ddpm_jax.errors import require

__all__ = ["DIGITS_LEVELS", "digits_shape", "read_digits"]

DIGITS_LEVELS = 17
"""Number of grey levels of the digits."""
_SHAPE = (8, 8, 1)
_TRAIN = 1437
"""Number of digits for training; the other 360 of 1,797 are held out."""
_SPLIT_SEED = 0


def read_digits(preparation: Preparation = STORED) -> ImageSet:
    """Reads the 1,797 digits, 8x8, 17 grey levels: 1,437 for training and 360 held out.

    The split is random and always the same; all results that this project publishes use it. The
    data do not name the writers, so digits of the same writer are in both parts.

    Args:
        preparation: applied to each image.

    Returns:
        The training images and the held-out ones.

    Raises:
        DataError: the preparation does not work on digits, see `digits_shape`.

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
    """The shape of the prepared digits.

    Args:
        preparation: applied to each image.

    Returns:
        (height, width, channel).

    Raises:
        DataError: the preparation needs images with 256 levels, or `pad` is too small.
    """
    if preparation.size is not None or preparation.grey:
        raise DataError(
            f"preparation.size is {preparation.size} and preparation.grey {preparation.grey}; leave"
            " them out: digits have 17 grey levels, and only images of 256 are resized or made grey"
        )
    return preparation.shape_of(_SHAPE)
