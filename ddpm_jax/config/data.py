"""The data sets, and what is done to each image."""

import abc
import dataclasses
import os
import pathlib
from typing import Annotated, ClassVar

from ddpm_jax import data as images
from ddpm_jax.config.base import (
    COUNT,
    NOT_EMPTY,
    NOT_NEGATIVE,
    Affects,
    Member,
    check_made,
)
from ddpm_jax.data import DataError, ImageSet, OnBadImage
from ddpm_jax.errors import first_line

__all__ = [
    "Archive",
    "Data",
    "Digits",
    "Folder",
    "InMemory",
    "Preparation",
    "Standard",
    "TensorFlowDataset",
    "load_images",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation(Member):
    """What is done to each image before training and evaluation."""

    affects: ClassVar[Affects] = Affects.MODEL
    crop: Annotated[int | None, COUNT] = None
    """Side of the square that is cut from each image, in pixels: at a random place for training, in
    the middle for held-out images. None: no crop."""
    flip: Annotated[bool, Affects.TRAINING] = False
    """Mirror each training image left to right with probability 1/2."""

    @abc.abstractmethod
    def make(self) -> images.Preparation:
        """The preparation of one image and of an array of images, before any crop.

        Returns:
            The preparation, see `ddpm_jax.data.Preparation`.
        """


@dataclasses.dataclass(frozen=True)
class Standard(Preparation):
    """Converts to grey, resizes, adds a border: each only if it is set."""

    grey: bool = False
    """Convert colours to grey."""
    size: Annotated[int | None, COUNT] = None
    """Resize the shorter side to this number of pixels, and cut the longer side to it in the
    middle."""
    pad: Annotated[int | None, COUNT] = None
    """Add a black border, so that each image is a square of this side, in pixels."""

    def make(self) -> images.Preparation:
        """Returns `ddpm_jax.data.Preparation`."""
        return images.Preparation(grey=self.grey, size=self.size, pad=self.pad)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(Member):
    """A data set.

    A run that resumes compares the content of the images, not their place.
    """

    affects: ClassVar[Affects] = Affects.PLACE
    on_bad_image: Annotated[OnBadImage, Affects.REPORTS] = "stop"
    """What to do with an image that cannot be decoded: "stop" ends the run, "skip" leaves the image
    out, counts it and reports it."""
    memory_gb: Annotated[float, NOT_NEGATIVE] = 4.0
    """Size up to which a data set is decoded once into memory, in gigabytes of pixels. Larger ones
    are decoded while they are read."""

    @abc.abstractmethod
    def make(self, preparation: images.Preparation) -> ImageSet:
        """Opens the data set.

        Args:
            preparation: to be applied to each image. The caller crops and flips.

        Returns:
            The training images and the held-out ones, uint8.

        Raises:
            DataError: the data set does not exist, or cannot be read.
        """

    @property
    def title(self) -> str:
        """Name of the data set in sentences before it is read."""
        return type(self).__name__

    def shape_and_levels(self, preparation: images.Preparation) -> tuple[tuple[int, int, int], int]:
        """The shape of the prepared images and the number of grey levels.

        `plan` and `inspect` call it, on machines that may not have the data set. Override it if
        both are known without the images.

        Args:
            preparation: applied to each image.

        Returns:
            ((height, width, channel), number of grey levels).
        """
        made = self.make(preparation)
        return made.image_shape, made.levels


@dataclasses.dataclass(frozen=True)
class Digits(Data):
    """Scikit-learn's 1,797 handwritten digits, 8x8, 17 grey levels; 360 of them are held out.

    The split is random and always the same. The data do not name the writers, so digits of the same
    writer are in both parts.
    """

    @property
    def title(self) -> str:
        """The name in tables of results, "digits"."""
        return "digits"

    def make(self, preparation: images.Preparation) -> ImageSet:
        """Reads the digits from the installed scikit-learn."""
        return images.read_digits(preparation)

    def shape_and_levels(self, preparation: images.Preparation) -> tuple[tuple[int, int, int], int]:
        """Known without the images."""
        return images.digits_shape(preparation), images.DIGITS_LEVELS


@dataclasses.dataclass(frozen=True)
class Folder(Data):
    """Image files in a folder, with subfolders as classes; see `ddpm_jax.data.read_folder`."""

    path: Annotated[str, NOT_EMPTY]
    """Path of the folder."""

    @property
    def title(self) -> str:
        """The path as it was given."""
        return self.path

    def make(self, preparation: images.Preparation) -> ImageSet:
        """Lists the files, which are decoded later."""
        path = _existing(self.path, "folder")
        return images.read_folder(path, preparation=preparation, on_bad_image=self.on_bad_image)


@dataclasses.dataclass(frozen=True)
class Archive(Data):
    """Arrays in an .npz file; see `ddpm_jax.data.read_archive`."""

    path: Annotated[str, NOT_EMPTY]
    """Path of the .npz file."""

    @property
    def title(self) -> str:
        """The path as it was given."""
        return self.path

    def make(self, preparation: images.Preparation) -> ImageSet:
        """Reads the arrays into memory."""
        path = _existing(self.path, "archive")
        return images.read_archive(path, preparation=preparation, memory_gb=self.memory_gb)

    def shape_and_levels(self, preparation: images.Preparation) -> tuple[tuple[int, int, int], int]:
        """Read from the headers of the arrays."""
        path = _existing(self.path, "archive")
        shape = images.archive_shape(path, preparation=preparation)
        return shape, images.archive_levels(path)


@dataclasses.dataclass(frozen=True)
class TensorFlowDataset(Data):
    """An image data set of TensorFlow Datasets, 256 levels, prepared as array_record.

    `ddpm-jax data prepare` prepares it. The split `train` is for training. The held-out images are
    the split `test`; without it, `validation`; without both, the first tenth of `train`. The labels
    are the feature `label`, if the data set has it.
    """

    name: Annotated[str, NOT_EMPTY]
    """Name of the data set: "cifar10", "mnist:3.0.1", "downsampled_imagenet/64x64"."""
    dir: str | None = None
    """Folder of prepared data sets. None: TFDS_DATA_DIR, or else ~/tensorflow_datasets."""

    @property
    def title(self) -> str:
        """The name of the data set."""
        return self.name

    def make(self, preparation: images.Preparation) -> ImageSet:
        """Opens the prepared records."""
        return images.read_prepared(
            self.name,
            images.prepared_directory(self.dir),
            preparation=preparation,
            on_bad_image=self.on_bad_image,
        )

    def shape_and_levels(self, preparation: images.Preparation) -> tuple[tuple[int, int, int], int]:
        """As the data set declares them."""
        declared = images.declared_shape(self.name, images.prepared_directory(self.dir))
        return preparation.shape_of(declared), 256


@dataclasses.dataclass(frozen=True)
class InMemory(Data):
    """Images that a Python program passes to `ddpm_jax.experiment.train` as `images`."""

    name: Annotated[str, NOT_EMPTY] = "images"
    """Name of the data set in tables and sentences."""

    @property
    def title(self) -> str:
        """The field `name`."""
        return self.name

    def make(self, preparation: images.Preparation) -> ImageSet:
        """Raises DataError: there is nothing to read."""
        raise DataError(
            f"data is InMemory({self.name!r}); pass its images in Python, as"
            " train(config, images=...)"
        )


def load_images(data: Data, preparation: Preparation) -> ImageSet:
    """The prepared images of a data set; the held-out ones are also cropped.

    Images that fit into `data.memory_gb` are decoded now, into memory.

    Args:
        data: the data set.
        preparation: applied to each image.

    Returns:
        The training images and the held-out ones, uint8.

    Raises:
        DataError: the data set does not exist, has images of different sizes, or cannot be read.
    """
    made = data.make(preparation.make())
    check_made("data", data, made, ImageSet)
    return images.with_crop_and_memory(made, crop=preparation.crop, memory_gb=data.memory_gb)


def _existing(given: str, what: str) -> pathlib.Path:
    """The absolute path of an existing file or folder."""
    path = pathlib.Path(given)
    try:
        path = pathlib.Path(os.path.abspath(path.expanduser()))
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"data.path is {given!r}; there is no {what} {str(path)!r}") from None
    except (OSError, ValueError, RuntimeError) as error:  # no permission, a NUL, no such user
        reason = first_line(error)
        raise DataError(f"data.path is {given!r}, which cannot be read ({reason})") from error
    return path
