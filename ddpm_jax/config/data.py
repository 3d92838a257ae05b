"""Where images come from, and what is done to each of them."""

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
    """What is done to every image before training and evaluation see it."""

    affects: ClassVar[Affects] = Affects.MODEL
    crop: Annotated[int | None, COUNT] = None
    """Train on squares of this side cut out at random; held-out images are cut in the middle."""
    flip: Annotated[bool, Affects.TRAINING] = False
    """Mirror each training image left to right half of the time."""

    @abc.abstractmethod
    def make(self) -> images.Preparation:
        """The functions of one image, and of an array of them, before any crop."""


@dataclasses.dataclass(frozen=True)
class Standard(Preparation):
    """Grey, resized, bordered: each only if it is set. See `ddpm_jax.data.Preparation`."""

    grey: bool = False
    """Take the colours away."""
    size: Annotated[int | None, COUNT] = None
    """Resize the shorter side to this, and keep the middle of the longer one."""
    pad: Annotated[int | None, COUNT] = None
    """Put a black border around, to squares of this side."""

    def make(self) -> images.Preparation:
        """`ddpm_jax.data.Preparation`."""
        return images.Preparation(grey=self.grey, size=self.size, pad=self.pad)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(Member):
    """A data set. A run that goes on compares the content of the images, not where they are."""

    affects: ClassVar[Affects] = Affects.PLACE
    on_bad_image: Annotated[OnBadImage, Affects.REPORTS] = "stop"
    """What to do with an image that cannot be decoded: "stop" with a sentence, or "skip", count and
    report it."""
    memory_gb: Annotated[float, NOT_NEGATIVE] = 4.0
    """Data sets of at most so many gigabytes of pixels are decoded once, into memory; larger ones
    as they are read."""

    @abc.abstractmethod
    def make(self, preparation: images.Preparation) -> ImageSet:
        """Opens the data set: images to train on and held out, uint8.

        Args:
            preparation: to be done to every image. Crops and flips are done by the caller.
        """

    @property
    def title(self) -> str:
        """What sentences call the data set before it is read."""
        return type(self).__name__

    def shape_and_levels(self, preparation: images.Preparation) -> tuple[tuple[int, int, int], int]:
        """(height, width, channel) and the number of grey levels, if possible without the images.

        `plan` and `inspect` call it, on machines that may not have the data set.
        """
        made = self.make(preparation)
        return made.image_shape, made.levels


@dataclasses.dataclass(frozen=True)
class Digits(Data):
    """Scikit-learn's 1,797 handwritten digits, 8x8, 17 grey levels; 360 of them are held out.

    The split is a fixed random one. The data do not say who wrote a digit, so a writer's digits are
    in both parts.
    """

    @property
    def title(self) -> str:
        """As in the tables of results."""
        return "digits"

    def make(self, preparation: images.Preparation) -> ImageSet:
        """Reads them from the scikit-learn that is installed."""
        return images.read_digits(preparation)

    def shape_and_levels(self, preparation: images.Preparation) -> tuple[tuple[int, int, int], int]:
        """They need not be read for it."""
        return images.digits_shape(preparation), images.DIGITS_LEVELS


@dataclasses.dataclass(frozen=True)
class Folder(Data):
    """Image files in a folder, with subfolders as classes; see `ddpm_jax.data.folder`."""

    path: Annotated[str, NOT_EMPTY]

    @property
    def title(self) -> str:
        """As it was given."""
        return self.path

    def make(self, preparation: images.Preparation) -> ImageSet:
        """Lists the files; they are decoded later."""
        path = _existing(self.path, "folder")
        return images.read_folder(path, preparation=preparation, on_bad_image=self.on_bad_image)


@dataclasses.dataclass(frozen=True)
class Archive(Data):
    """Arrays in an .npz file; see `ddpm_jax.data.archive`."""

    path: Annotated[str, NOT_EMPTY]

    @property
    def title(self) -> str:
        """As it was given."""
        return self.path

    def make(self, preparation: images.Preparation) -> ImageSet:
        """Reads the arrays into memory."""
        path = _existing(self.path, "archive")
        return images.read_archive(path, preparation=preparation, memory_gb=self.memory_gb)

    def shape_and_levels(self, preparation: images.Preparation) -> tuple[tuple[int, int, int], int]:
        """From the headers of the arrays."""
        path = _existing(self.path, "archive")
        shape = images.archive_shape(path, preparation=preparation)
        return shape, images.archive_levels(path)


@dataclasses.dataclass(frozen=True)
class TensorFlowDataset(Data):
    """An image data set of TensorFlow Datasets, 256 levels, prepared as array_record.

    `ddpm-jax data prepare` prepares it. Its split `train` is trained on, and `test`, or
    `validation` where there is no `test`, held out; where there is neither, the first tenth of
    `train` is. Labels are its feature `label`; there are none where the data set withholds them.
    """

    name: Annotated[str, NOT_EMPTY]
    """"cifar10", "mnist:3.0.1", "downsampled_imagenet/64x64"."""
    dir: str | None = None
    """Where prepared data sets are; by default TFDS_DATA_DIR or ~/tensorflow_datasets."""

    @property
    def title(self) -> str:
        """Its name."""
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
        """As the data set declares it."""
        declared = images.declared_shape(self.name, images.prepared_directory(self.dir))
        return preparation.shape_of(declared), 256


@dataclasses.dataclass(frozen=True)
class InMemory(Data):
    """Images that the caller of `ddpm_jax.train` hands over as `images`."""

    name: Annotated[str, NOT_EMPTY] = "images"

    @property
    def title(self) -> str:
        """What the caller named it."""
        return self.name

    def make(self, preparation: images.Preparation) -> ImageSet:
        """Raises DataError: there is nothing to read."""
        raise DataError(
            f"data is InMemory({self.name!r}): its images are handed over in Python,"
            " as train(config, images=...)"
        )


def load_images(data: Data, preparation: Preparation) -> ImageSet:
    """The images of a data set, prepared, the held-out ones cropped; decoded once if they are few.

    Raises:
        DataError: a data set that is not there, has no images of one size, or cannot be read.
    """
    made = data.make(preparation.make())
    check_made("data", data, made, ImageSet)
    return images.with_crop_and_memory(made, crop=preparation.crop, memory_gb=data.memory_gb)


def _existing(given: str, what: str) -> pathlib.Path:
    """The absolute path of a file or folder that is there."""
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
