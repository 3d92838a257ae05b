"""Where images come from: scikit-learn's digits, or a prepared data set of TensorFlow Datasets.

Either way the whole set is read once, into memory, and batches are made from the arrays. Nothing
is ever downloaded.
"""

import os
import pathlib

import numpy as np

from ddpm_jax.data.images import ImageSet
from ddpm_jax.data.prepared import declared_shape, read_prepared

__all__ = ["image_levels", "image_shape", "load"]

DIGITS_TRAIN = 1437
"""Digits to train on; the other 360 of 1,797 are held out."""
DIGITS_SPLIT_SEED = 0
DIGITS_LEVELS = 17
DIGITS_SHAPE = (8, 8, 1)


def load(name: str, data_dir: str | None = None) -> ImageSet:
    """The images called `name`, to train on and held out.

    - `"digits"`: scikit-learn's 1,797 handwritten digits, 8x8, 17 grey levels, in one fixed random
      split of 1,437 and 360. It is the split of all numbers this project publishes. The data do
      not tell who wrote a digit, so a writer's digits are in both parts, and numbers on unseen
      writers may be worse.
    - any other name: an image data set of TensorFlow Datasets (`"cifar10"`, `"mnist:3.0.1"`,
      `"downsampled_imagenet/64x64"`), 256 levels, prepared as array_record below `data_dir`. Its
      split `train` is trained on, and `test`, or `validation` where there is no `test`, held out.
      Labels are its feature `label`; there are none where the data set withholds them.

    Args:
        name: as above.
        data_dir: where data sets were prepared; by default the environment variable
            TFDS_DATA_DIR, and without it ~/tensorflow_datasets.

    Raises:
        DataError: an unknown name, or a data set that is not there, is not array_record, has no
            images of one size, or cannot be read.

    Example:
        >>> from ddpm_jax.data import load
        >>> digits = load("digits")
        >>> digits.train.shape, digits.held_out.shape, digits.levels
        ((1437, 8, 8, 1), (360, 8, 8, 1), 17)
    """
    return _digits() if name == "digits" else read_prepared(name, _directory(data_dir))


def image_shape(name: str, data_dir: str | None = None) -> tuple[int, int, int]:
    """(height, width, channel) of the images called `name`, which need not be there yet.

    Raises:
        DataError: an unknown name, or images that are not of one size.

    Example:
        >>> from ddpm_jax.data import image_shape
        >>> image_shape("digits")
        (8, 8, 1)
    """
    return DIGITS_SHAPE if name == "digits" else declared_shape(name, _directory(data_dir))


def image_levels(name: str) -> int:
    """The number of grey levels of the images called `name`, which need not be there yet."""
    return DIGITS_LEVELS if name == "digits" else 256


def _directory(data_dir: str | None) -> pathlib.Path:
    given = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return pathlib.Path(given).expanduser()


def _digits() -> ImageSet:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images[..., None].astype(np.uint8)  # whole numbers, 0 to 16
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(DIGITS_SPLIT_SEED).permutation(len(images))
    train, held_out = order[:DIGITS_TRAIN], order[DIGITS_TRAIN:]
    return ImageSet(
        "digits",
        train=images[train],
        held_out=images[held_out],
        levels=DIGITS_LEVELS,
        train_labels=labels[train],
        held_out_labels=labels[held_out],
    )
