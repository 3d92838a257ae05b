"""Reads an image data set that TensorFlow Datasets prepared, without TensorFlow.

TensorFlow is needed to prepare a data set, on any machine, and never to read it here: records come
through array_record, and PNG or JPEG bytes are decoded by Pillow, so that pixels do not depend on
whether OpenCV is there. A data set is known by its files; its own code, which may download, is not
asked to prepare it.
"""

import difflib
import io
import pathlib
import re
from typing import Any

import numpy as np
import PIL.Image

from ddpm_jax.data.images import DataError, ImageSet

__all__ = ["declared_shape", "read_prepared"]

_READ_AT_ONCE = 1000
"""Records asked for at a time; each request costs a round trip through a thread pool."""


def read_prepared(name: str, directory: pathlib.Path) -> ImageSet:
    """The data set `name` prepared below `directory`, all of it; see `ddpm_jax.data.load`."""
    builder = _open(name, directory)
    splits = {split: info.num_examples for split, info in builder.info.splits.items()}
    held_out = "test" if "test" in splits else "validation"
    for split in ("train", held_out):
        if not splits.get(split):
            raise DataError(
                f"data set {name!r} in {directory} has no images in split {split!r}, but {splits};"
                " it has to have some in train and in test or validation"
            )
    train_images, train_labels = _read_split(name, directory, builder, "train")
    images, labels = _read_split(name, directory, builder, held_out)
    return ImageSet(
        name,
        train=train_images,
        held_out=images,
        levels=256,
        train_labels=train_labels,
        held_out_labels=labels,
    )


def declared_shape(name: str, directory: pathlib.Path) -> tuple[int, int, int]:
    """(height, width, channel) as the data set declares them; it need not be prepared.

    Where it declares no size, a name like `downsampled_imagenet/64x64` tells it.
    """
    import tensorflow_datasets as tfds

    try:
        builder = _open(name, directory)
    except DataError as error:
        try:
            builder = tfds.builder(name, data_dir=str(directory))
        except Exception:
            raise error from None
    _check_features(f"data set {name!r}", builder.info.features)
    height, width, channel = shape = builder.info.features["image"].shape
    if square := re.search(r"/(\d+)x\1(:|$)", name):
        height, width = height or int(square[1]), width or int(square[1])
    if height is None or width is None:
        raise DataError(
            f"data set {name!r} declares images of shape {shape}; it has to be one size"
        )
    return height, width, channel


def _open(name: str, directory: pathlib.Path) -> Any:
    """The reader of a prepared data set, or the sentence that says how to prepare it."""
    import tensorflow_datasets as tfds  # half a second, spared to those who read digits

    bare = name.split("/")[0].split(":")[0]
    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=str(directory))
    except tfds.core.DatasetNotFoundError:
        pass
    except Exception as error:  # whatever damaged files or a name it cannot parse raise in tfds
        if bare and (directory / bare).exists():
            raise DataError(
                f"data set {name!r} in {directory} cannot be opened ({_first_line(error)}); if its"
                f" files are damaged, {_how_to_prepare(name, directory, overwrite=True)}"
            ) from error
    known = ["digits", *tfds.list_builders(with_community_datasets=False)]
    if bare in known:
        raise DataError(
            f"data set {name!r} is not in {directory}; {_how_to_prepare(name, directory)}"
        )
    near = " or ".join(map(repr, difflib.get_close_matches(bare, known)))
    raise DataError(
        f"data set {name!r} is not in {directory} and TensorFlow Datasets has none of that name;"
        + (f" did you mean {near}," if near else " 'digits' is built in,")
        + " or is it one of your own, elsewhere (--data.dir or TFDS_DATA_DIR)?"
    )


def _read_split(
    name: str, directory: pathlib.Path, builder: Any, split: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """All images of a split, uint8 [n, height, width, channel], and its labels."""
    import tensorflow_datasets as tfds

    channels, labelled = _check_features(f"data set {name!r} in {directory}", builder.info.features)
    try:
        # Other features are decoded as well, but images by Pillow.
        source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise DataError(
            f"data set {name!r} in {directory} is in the format {builder.info.file_format.value},"
            f" which only tensorflow reads; {_how_to_prepare(name, directory, overwrite=True)}"
        ) from error
    try:
        shape = _decode(source[0]["image"], channels).shape
        images, labels = np.empty((len(source), *shape), np.uint8), np.zeros(len(source), np.int64)
        for first in range(0, len(source), _READ_AT_ONCE):
            keys = range(first, min(first + _READ_AT_ONCE, len(source)))
            for key, record in zip(keys, source.__getitems__(keys), strict=True):
                pixels = _decode(record["image"], channels)
                if pixels.shape != shape:
                    raise DataError(
                        f"data set {name!r} in {directory} has images of several sizes, in {split}"
                        f" {shape[:2]} and, record {key}, {pixels.shape[:2]}; it has to be one size"
                    )
                images[key] = pixels
                if labelled:
                    labels[key] = record["label"]
    except DataError:
        raise
    except Exception as error:  # damage shows as whatever array_record, protobuf or Pillow raises
        raise DataError(
            f"data set {name!r} in {directory} cannot be read in split {split!r}"
            f" ({_first_line(error)}); if its files are damaged,"
            f" {_how_to_prepare(name, directory, overwrite=True)}"
        ) from error
    withheld = bool((labels < 0).any())  # tfds then writes -1
    return images, labels if labelled and not withheld else None


def _check_features(where: str, features: Any) -> tuple[int, bool]:
    """How many channels the images have, and whether there are labels."""
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
    return channels, isinstance(by_name.get("label"), tfds.features.ClassLabel)


def _decode(encoded: bytes, channels: int) -> np.ndarray:
    """PNG or JPEG bytes as uint8 [height, width, channels], the channels that tfds declares."""
    with PIL.Image.open(io.BytesIO(encoded)) as picture:
        pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"), np.uint8)
    return pixels.reshape(*pixels.shape[:2], channels)


def _how_to_prepare(name: str, directory: pathlib.Path, *, overwrite: bool = False) -> str:
    command = f"tfds build {name} --file_format=array_record --data_dir={directory}"
    command += " --overwrite" if overwrite else ""
    return (
        f"prepare it with `{command}` on a machine with internet and tensorflow installed, or say"
        " where it is with --data.dir or TFDS_DATA_DIR"
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".: ")
