"""Images in an .npz archive, as NumPy writes it.

It has the arrays `train_images` and `test_images`, and `train_labels` and `test_labels` if there
are labels; or `images` alone (and `labels`), of which each tenth is held out. Images are uint8
`[n, height, width]` or `[n, height, width, 1 or 3]`. A number `levels` says how many grey levels
they have, if not 256. What `ddpm-jax sample --out x.npz` writes can be read.
"""

import dataclasses
import pathlib
import zipfile

import numpy as np

from ddpm_jax.data.images import DataError, check_images, check_labels
from ddpm_jax.data.preparation import Preparation, first_line
from ddpm_jax.data.source import Arrays, ImageSet

__all__ = ["read_archive"]

_MOST_CLASSES = 100_000


def read_archive(path: pathlib.Path, *, preparation: Preparation) -> ImageSet:
    """The images in the archive at `path`.

    Raises:
        DataError: no archive, a damaged one, arrays that are missing, or are no images.
    """
    arrays = _read(path)
    levels = _levels(path, arrays)
    if (preparation.size is not None or preparation.grey) and levels != 256:
        raise DataError(
            f"archive {str(path)!r} has {levels} grey levels; only images of 256 are resized or"
            " made grey"
        )
    if "train_images" in arrays and "test_images" in arrays:
        splits = ("train", "test")
        parts = [_part(path, arrays, f"{split}_", levels) for split in splits]
    elif "images" in arrays:
        splits = ("nine in ten", "one in ten")
        whole = _part(path, arrays, "", levels)
        if len(whole) < 10:
            raise DataError(
                f"archive {str(path)!r} has {len(whole)} images, too few to hold one in ten out; it"
                " can have 'train_images' and 'test_images'"
            )
        apart = np.arange(len(whole)) % 10 == 9
        parts = [_some(whole, which) for which in (~apart, apart)]
    else:
        raise DataError(
            f"archive {str(path)!r} has the arrays {sorted(arrays)}; it has to have 'train_images'"
            " and 'test_images', or 'images'"
        )
    train, held_out = (_prepared(part, preparation) for part in parts)
    return ImageSet(
        path.stem,
        train=train,
        held_out=held_out,
        levels=levels,
        classes=_classes(path, train, held_out),
        splits=splits,
        preparation=str(preparation),
    )


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise DataError(f"archive {str(path)!r} {what}; data.name is 'npz:PATH'")
    if not zipfile.is_zipfile(path):  # NumPy would advise to load pickles
        raise DataError(
            f"archive {str(path)!r} cannot be read (it is no zip file, or not all of one);"
            " numpy.savez writes such"
        )
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # whatever damage makes of zipfile, zlib and NumPy's headers
        raise DataError(
            f"archive {str(path)!r} cannot be read ({first_line(error)}); numpy.savez writes such"
        ) from error


def _levels(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> int:
    levels = arrays.get("levels", np.array(256))
    if levels.shape != () or not np.issubdtype(levels.dtype, np.integer):
        raise DataError(
            f"levels of {str(path)!r} has shape {levels.shape} and dtype {levels.dtype}; it has to"
            " be one integer"
        )
    return int(levels)


def _part(path: pathlib.Path, arrays: dict[str, np.ndarray], prefix: str, levels: int) -> Arrays:
    """The images and labels whose names begin so."""
    images, labels = arrays[f"{prefix}images"], arrays.get(f"{prefix}labels")
    name = f"{prefix}images of {str(path)!r}"
    if images.ndim == 3:
        images = images[..., None]
    check_images(name, images, levels)
    if labels is not None:
        check_labels(f"{prefix}labels of {str(path)!r}", labels, len(images))
    return Arrays(images, labels, levels, name)


def _some(source: Arrays, which: np.ndarray) -> Arrays:
    labels = None if source.labels is None else source.labels[which]
    return dataclasses.replace(source, images=source.images[which], labels=labels)


def _prepared(source: Arrays, preparation: Preparation) -> Arrays:
    preparation.shape_of(source.image_shape)
    return dataclasses.replace(source, images=preparation.of_array(source.images))


def _classes(path: pathlib.Path, *sources: Arrays) -> tuple[str, ...] | None:
    labels = [source.labels for source in sources if source.labels is not None]
    if len(labels) < len(sources):
        return None
    most = max(int(part.max()) for part in labels)
    if most >= _MOST_CLASSES:
        raise DataError(
            f"archive {str(path)!r} has the label {most}; labels are classes, numbered from 0, and"
            f" fewer than {_MOST_CLASSES:,}"
        )
    return tuple(str(label) for label in range(most + 1))
