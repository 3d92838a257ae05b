"""Where images come from, by name. Nothing is ever downloaded here."""

import contextlib
import dataclasses
import difflib
import math
import os
import pathlib

from ddpm_jax.data.archive import archive_levels, archive_shape, read_archive
from ddpm_jax.data.digits import DIGITS_LEVELS, DIGITS_SHAPE, read_digits
from ddpm_jax.data.encoded import Encoded, OnBadImage, read_all
from ddpm_jax.data.folder import read_folder
from ddpm_jax.data.images import DataError
from ddpm_jax.data.preparation import Preparation, first_line
from ddpm_jax.data.prepared import declared_shape, read_prepared
from ddpm_jax.data.source import CentreCropped, ImageSet, Source, check_crop

__all__ = ["image_levels", "image_shape", "load", "prepared_directory"]

_FOLDER, _ARCHIVE = "folder:", "npz:"


def load(
    name: str,
    data_dir: str | None = None,
    *,
    preparation: Preparation | None = None,
    crop: int | None = None,
    on_bad_image: OnBadImage = "stop",
    memory_gb: float = 4.0,
) -> ImageSet:
    """The images called `name`, to train on and held out.

    - `"digits"`: scikit-learn's 1,797 handwritten digits, 8x8, 17 grey levels, in one fixed random
      split of 1,437 and 360. It is the split of all numbers this project publishes. The data do
      not tell who wrote a digit, so a writer's digits are in both parts, and numbers on unseen
      writers may be worse.
    - `"folder:PATH"`: files in a folder, with subfolders as classes; see `ddpm_jax.data.folder`.
    - `"npz:PATH"`: arrays in an archive; see `ddpm_jax.data.archive`. A relative PATH of either is
      below `data_dir`, if it is given, else below the working directory.
    - any other name: an image data set of TensorFlow Datasets (`"cifar10"`, `"mnist:3.0.1"`,
      `"downsampled_imagenet/64x64"`), 256 levels, prepared as array_record below `data_dir`
      (`ddpm-jax data prepare`). Its split `train` is trained on, and `test`, or `validation` where
      there is no `test`, held out; where there is neither, the first tenth of `train` is. Labels
      are its feature `label`; there are none where the data set withholds them.

    Args:
        name: as above.
        data_dir: where data sets are. Those of TensorFlow Datasets are by default where the
            environment variable TFDS_DATA_DIR says, and without it in ~/tensorflow_datasets.
        preparation: what is done to every image.
        crop: side of the squares that training sees, each at random; held-out images are cropped
            in the middle.
        on_bad_image: what to do of one that cannot be decoded; see `ddpm_jax.data.encoded`.
        memory_gb: a set of at most so many gigabytes of pixels is decoded once, into memory; a
            larger one as it is read.

    Raises:
        DataError: an unknown name, or a data set that is not there, is not array_record, has no
            images of one size, or cannot be read.

    Example:
        >>> from ddpm_jax.data import load
        >>> digits = load("digits")
        >>> len(digits.train), len(digits.held_out), digits.image_shape, digits.levels
        (1437, 360, (8, 8, 1), 17)
    """
    preparation = preparation or Preparation()
    if name == "digits":
        if preparation.size is not None or preparation.grey:
            raise DataError(
                f"data.size is {preparation.size} and data.grey {preparation.grey}; digits have"
                " 17 grey levels, and only images of 256 are resized or made grey"
            )
        preparation.shape_of(DIGITS_SHAPE)
        images = read_digits(preparation)
    elif name.startswith(_ARCHIVE):
        images = read_archive(
            _path(name, _ARCHIVE, data_dir), preparation=preparation, memory_gb=memory_gb
        )
    elif name.startswith(_FOLDER):
        images = read_folder(
            _path(name, _FOLDER, data_dir), preparation=preparation, on_bad_image=on_bad_image
        )
    else:
        images = read_prepared(
            name,
            prepared_directory(data_dir),
            preparation=preparation,
            on_bad_image=on_bad_image,
            own=_of_own(name, data_dir),
        )
    train, held_out = (
        _read_if_small(source, memory_gb, f"{images.name}, {split}")
        for source, split in zip((images.train, images.held_out), images.splits, strict=True)
    )
    return dataclasses.replace(
        images,
        train=train,
        held_out=held_out if crop is None else CentreCropped(held_out, crop),
        classes=images.classes if train.labelled and held_out.labelled else None,
        preparation=_described(images.preparation, crop),
        crop=crop,
    )


def image_shape(
    name: str,
    data_dir: str | None = None,
    *,
    preparation: Preparation | None = None,
    crop: int | None = None,
) -> tuple[int, int, int]:
    """(height, width, channel) of the images called `name`; data sets need not be there yet.

    Raises:
        DataError: an unknown name, or images that are not of one size.

    Example:
        >>> from ddpm_jax.data import image_shape
        >>> image_shape("digits")
        (8, 8, 1)
    """
    preparation = preparation or Preparation()
    if name.startswith(_FOLDER):
        images = load(name, data_dir, preparation=preparation, crop=crop, memory_gb=0.0)
        return images.image_shape
    if name.startswith(_ARCHIVE):
        shape = archive_shape(_path(name, _ARCHIVE, data_dir), preparation=preparation)
    elif name == "digits":
        shape = preparation.shape_of(DIGITS_SHAPE)
    else:
        own = _of_own(name, data_dir)
        shape = preparation.shape_of(declared_shape(name, prepared_directory(data_dir), own))
    if crop is None:
        return shape
    check_crop(crop, shape)
    return crop, crop, shape[2]


def image_levels(name: str, data_dir: str | None = None) -> int:
    """The number of grey levels of the images called `name`; data sets need not be there yet."""
    if name.startswith(_ARCHIVE):
        return archive_levels(_path(name, _ARCHIVE, data_dir))
    return DIGITS_LEVELS if name == "digits" else 256


def _read_if_small(source: Source, memory_gb: float, name: str) -> Source:
    size = len(source) * math.prod(source.image_shape)
    if isinstance(source, Encoded) and size <= memory_gb * 1e9:
        return read_all(source, name)
    return source


def _described(preparation: str, crop: int | None) -> str:
    return preparation if crop is None else f"{preparation}, centre crop to {crop}x{crop}"


def _path(name: str, prefix: str, data_dir: str | None) -> pathlib.Path:
    """The absolute path that a name says, of a file or folder that is there."""
    given = name.removeprefix(prefix)
    if not given:
        raise DataError(f"data.name is {name!r}; it has to be '{prefix}PATH'")
    what = "folder" if prefix == _FOLDER else "archive"
    path = pathlib.Path(given)
    try:
        path = path.expanduser()
        base = "" if data_dir is None else pathlib.Path(data_dir).expanduser()
        path = pathlib.Path(os.path.abspath(base / path))
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        relative = "--data.dir" if data_dir is not None else "the working directory"
        below = f"; {given!r} is relative to {relative}"
        if data_dir is None:
            below += ", or to --data.dir if that is given"
        raise DataError(
            f"{what} {str(path)!r} does not exist; data.name is '{prefix}PATH'"
            + ("" if pathlib.Path(given).expanduser().is_absolute() else below)
        ) from None
    except (OSError, ValueError, RuntimeError) as error:  # no permission, a NUL, no such user
        raise DataError(f"{what} {str(path)!r} cannot be read ({first_line(error)})") from error
    return path


def _of_own(name: str, data_dir: str | None) -> str | None:
    """How to write a name that is the path of images; None if it does not look like one."""
    prefix, colon, rest = name.partition(":")
    kinds = difflib.get_close_matches(prefix.lower(), ("folder", "npz")) if colon else []
    path = rest if kinds else name
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # as of a NUL, or no such user
        there = pathlib.Path(data_dir or ".").expanduser() / pathlib.Path(path).expanduser()
        if path and there.is_dir():
            return f"{_FOLDER}{path}"
        if there.is_file():
            return f"{_ARCHIVE}{path}"
    if path.lower().endswith(".npz"):
        return f"{_ARCHIVE}{path}"
    if kinds or path.startswith((".", "/", "~")):
        return f"{kinds[0] if kinds else 'folder'}:{path}"
    return None


def prepared_directory(data_dir: str | None) -> pathlib.Path:
    """Where prepared data sets are, if nothing else is said."""
    given = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return pathlib.Path(given).expanduser()
