"""Reads an image data set that TensorFlow Datasets prepared, without TensorFlow.

array_record reads the records, and Pillow decodes PNG and JPEG, so that pixels do not depend on
whether OpenCV is installed. Only the files of a data set are read; its own code, which may download
files, runs only in `ddpm_jax.data.prepare`.
"""

import dataclasses
import difflib
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ddpm_jax.data.encoded import Encoded, OnBadImage, Record
from ddpm_jax.data.images import DataError
from ddpm_jax.data.preparation import STORED, BadImageError, Preparation, decode
from ddpm_jax.data.source import ImageSet
from ddpm_jax.errors import first_line, require

__all__ = ["declared_shape", "nearest_names", "prepared_directory", "read_prepared"]

_TENTHS = ("train[10%:]", "train[:10%]")
"""The parts of a data set with one split. Its records are in the order of a hash of their names,
unless its builder says otherwise, so that the first tenth is random and always the same."""


@dataclasses.dataclass(frozen=True, eq=False)
class _TfdsRecords:
    """One split of a prepared data set as records."""

    name: str
    directory: pathlib.Path
    split: str
    source: Any
    """A sequence of tfds, which reads many records in one round trip."""
    labelled: bool

    def __len__(self) -> int:
        return len(self.source)

    def read(self, indices: Sequence[int]) -> list[Record]:
        try:
            return [
                Record(record["image"], int(record["label"]) if self.labelled else None)
                for record in self.source.__getitems__(indices)
            ]
        except Exception as error:  # damage shows as whatever array_record or protobuf raises
            raise DataError(
                f"data set {self.name!r} in {self.directory} cannot be read in split"
                f" {self.split!r}, records {min(indices)} to {max(indices)} ({first_line(error)});"
                f" if its files are damaged, {_how_to_prepare(self.name, self.directory, True)}"
            ) from error

    def where(self, index: int) -> str:
        return f"record {index} of split {self.split!r} of data set {self.name!r}"


def read_prepared(
    name: str,
    directory: pathlib.Path,
    *,
    preparation: Preparation = STORED,
    on_bad_image: OnBadImage = "stop",
) -> ImageSet:
    """Opens a data set that TensorFlow Datasets prepared. Its images are decoded later.

    Args:
        name: of the data set, such as "cifar10" or "downsampled_imagenet/64x64".
        directory: folder of prepared data sets.
        preparation: applied to each image.
        on_bad_image: what to do with an image that cannot be decoded.

    Returns:
        The training images and the held-out ones.

    Raises:
        DataError: the name is unknown; or the data set is not prepared, is not in the format
            array_record, or has images of different sizes and `preparation` has no `size`.
    """
    builder = _open(name, directory)
    splits = {split: info.num_examples for split, info in builder.info.splits.items()}
    parts = _parts(f"data set {name!r} in {directory}", splits)
    channels, classes = _check_features(f"data set {name!r} in {directory}", builder.info.features)
    stored = builder.info.features["image"].shape
    records = [_records(name, directory, builder, split, classes) for split in parts]
    if None in stored[:2] and preparation.size is None:
        stored = _first_shape(records[0], channels)
    shape = preparation.shape_of(stored)
    train, apart = (
        Encoded(part, preparation, channels, shape, part.labelled, on_bad_image) for part in records
    )
    return ImageSet(
        "/".join(filter(None, (builder.name, getattr(builder.builder_config, "name", None)))),
        train=train,
        held_out=apart,
        classes=classes,
        splits=parts,
        unused=() if parts == _TENTHS else tuple(split for split in splits if split not in parts),
        preparation=str(preparation),
    )


def declared_shape(name: str, directory: pathlib.Path) -> tuple[int | None, int | None, int]:
    """The shape of a data set's images as it declares them; it need not be prepared.

    If it declares no size, the size is taken from a name like `downsampled_imagenet/64x64`.

    Args:
        name: of the data set.
        directory: folder of prepared data sets.

    Returns:
        (height, width, channel); None for a side that the data set does not declare.

    Raises:
        DataError: the name is unknown, or the data set has no images.
    """
    _require_tfds(name)
    import tensorflow_datasets as tfds

    try:
        builder = _open(name, directory)
    except DataError as error:
        try:
            builder = tfds.builder(name, data_dir=str(directory))
        except Exception:
            raise error from None
    _check_features(f"data set {name!r}", builder.info.features)
    height, width, channel = builder.info.features["image"].shape
    if square := re.search(r"/(\d+)x\1(:|$)", name):
        height, width = height or int(square[1]), width or int(square[1])
    return height, width, channel


def _require_tfds(name: str) -> None:
    require(f"data set {name!r}", "tfds", "tensorflow_datasets", "importlib_resources")


def _open(name: str, directory: pathlib.Path) -> Any:
    """The reader of a prepared data set, or the sentence that says how to prepare it."""
    _require_tfds(name)
    import tensorflow_datasets as tfds  # half a second, spared to those who read digits

    bare = name.split("/")[0].split(":")[0]
    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=str(directory))
    except tfds.core.DatasetNotFoundError:
        pass
    except Exception as error:  # whatever damaged files or a name it cannot parse raise in tfds
        place = directory / bare
        if re.fullmatch(r"\w+", bare) and place.exists():
            raise DataError(
                f"data set {name!r} in {directory} cannot be opened ({first_line(error)}); if its"
                f" files are damaged, {_how_to_prepare(name, directory, True)}"
            ) from error
    known = tfds.list_builders(with_community_datasets=False)
    if bare in known:
        raise DataError(
            f"data set {name!r} is not in {directory}; {_how_to_prepare(name, directory)}"
        )
    near = " or ".join(map(repr, nearest_names(bare, known)))
    raise DataError(
        f"data set {name!r} is not in {directory}, and TensorFlow Datasets has no data set of that"
        f" name{f' (did you mean {near}?)' if near else ''}. For a data set of your own, give its"
        " folder with --data.dir or TFDS_DATA_DIR. To read images in a folder, take --data folder"
        " --data.path PATH; for an .npz file, --data archive"
    )


def nearest_names(name: str, known: Sequence[str]) -> list[str]:
    """Similar names among the known ones; case, hyphens and the like are ignored."""
    by_letters = {_letters(one): one for one in known}
    return [by_letters[near] for near in difflib.get_close_matches(_letters(name), by_letters)]


def _letters(name: str) -> str:
    return re.sub(r"\W+", "_", name.casefold())


def _parts(where: str, splits: dict[str, int]) -> tuple[str, str]:
    """The parts for training and held out, as tfds names them."""
    if splits.keys() == {"train"} and splits["train"] >= 10:
        return _TENTHS
    parts = "train", "test" if "test" in splits else "validation"
    for split in parts:
        if not splits.get(split):
            raise DataError(
                f"{where} has no images in the split {split!r}, but {splits}; it needs images in"
                " train and in test or validation, or ten in train only"
            )
    return parts


def _records(
    name: str,
    directory: pathlib.Path,
    builder: Any,
    split: str,
    classes: tuple[str, ...] | None,
) -> _TfdsRecords:
    import tensorflow_datasets as tfds

    try:
        # Other features are decoded as well, but images by Pillow.
        source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise DataError(
            f"data set {name!r} in {directory} is in the format {builder.info.file_format.value},"
            f" which only tensorflow reads; {_how_to_prepare(name, directory, True)}"
        ) from error
    records = _TfdsRecords(name, directory, split, source, classes is not None)
    if records.labelled:
        (first,) = records.read([0])
        if first.label is not None and first.label < 0:  # tfds writes this for withheld labels
            return dataclasses.replace(records, labelled=False)
    return records


def _first_shape(records: _TfdsRecords, channels: int) -> tuple[int, int, int]:
    reasons: list[str] = []
    for index in range(len(records)):
        (record,) = records.read([index])
        encoded = record.encoded
        try:
            picture = decode(b"" if isinstance(encoded, OSError) else encoded, channels)
        except BadImageError as error:
            reasons.append(str(error))
            continue
        return picture.height, picture.width, channels
    raise DataError(
        f"none of {len(records)} images can be used; the first: {records.where(0)} {reasons[0]}"
    )


def _check_features(where: str, features: Any) -> tuple[int, tuple[str, ...] | None]:
    """The number of channels, and the names of the classes if there are labels."""
    import tensorflow_datasets as tfds

    by_name = dict(features.items()) if hasattr(features, "items") else {}
    image = by_name.get("image")
    if not isinstance(image, tfds.features.Image):
        raise DataError(f"{where} has the features {sorted(by_name)}; one has to be an 'image'")
    channels = image.shape[-1]
    if image.np_dtype != np.uint8 or channels not in (1, 3):
        raise DataError(
            f"{where} has images of {channels} channels in {np.dtype(image.np_dtype)}; they have to"
            " be 1 (grey) or 3 (RGB) in uint8"
        )
    label = by_name.get("label")
    names = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else ()
    return channels, names or None


def _how_to_prepare(name: str, directory: pathlib.Path, overwrite: bool = False) -> str:
    command = f"ddpm-jax data prepare {name} --dir {directory}"
    command += " --overwrite" if overwrite else ""
    return f"prepare it with `{command}`, or give its folder with --data.dir or TFDS_DATA_DIR"


def prepared_directory(given: str | None) -> pathlib.Path:
    """The folder of prepared data sets.

    Args:
        given: a path, or None.

    Returns:
        That path; or else the variable TFDS_DATA_DIR; or else ~/tensorflow_datasets.
    """
    place = given or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return pathlib.Path(place).expanduser()
