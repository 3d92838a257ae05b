"""A folder of images: files in subfolders that name their classes, in any depth.

    root/train/cat/1.png    root/test/cat/7.jpg      its splits, where both folders are there
    root/cat/1.png          root/dog/deep/down.jpg   no splits: one in ten is held out
    root/train/cat/1.png                             the same, if there is nothing beside train
    root/1.png                                       no subfolders, so no classes

Which one in ten is a matter of the file's name alone (its sha256), so a file stays where it is when
others come or go. Files and folders whose names begin with a dot are not looked at.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NoReturn

from ddpm_jax.data.encoded import Encoded, OnBadImage, Record
from ddpm_jax.data.images import DataError
from ddpm_jax.data.preparation import Preparation, decode
from ddpm_jax.data.source import ImageSet

__all__ = ["read_folder"]

_HELD_OUT = ("test", "validation", "val")


@dataclasses.dataclass(frozen=True, eq=False)
class _Files:
    """Some of the files of a folder as records."""

    paths: Sequence[pathlib.Path]
    labels: Sequence[int | None]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: Sequence[int]) -> list[Record]:
        return [Record(_bytes_of(self.paths[index]), self.labels[index]) for index in indices]

    def where(self, index: int) -> str:
        return str(self.paths[index])


def read_folder(
    root: pathlib.Path, *, preparation: Preparation, on_bad_image: OnBadImage
) -> ImageSet:
    """The images below `root`, not yet decoded; three channels unless they become grey.

    Raises:
        DataError: no folder, no images, a class without any, images beside classes, classes that
            only one split has, or a first image that cannot be decoded.
    """
    if not root.is_dir():
        what = "is no folder" if root.exists() else "does not exist"
        raise DataError(f"folder {str(root)!r} {what}; data.name is 'folder:PATH'")
    held_out = next((root / name for name in _HELD_OUT if (root / name).is_dir()), None)
    if held_out is not None and (root / "train").is_dir():
        train_files, classes = _files_below(root / "train")
        held_out_files, held_out_classes = _files_below(held_out)
        splits = ("train", held_out.name)
        if classes != held_out_classes:
            differ = sorted(set(classes or ()) ^ set(held_out_classes or ()))
            raise DataError(
                f"folder {str(root)!r} has other classes in train than in {held_out.name}"
                f" ({', '.join(differ[:3])}); both have to have the same subfolders"
            )
    else:
        subfolders = [path.name for path in root.iterdir() if path.is_dir()]
        below = root / "train" if subfolders == ["train"] else root  # which is no class
        files, classes = _files_below(below)
        apart = [_is_held_out(path.relative_to(below)) for path in files.paths]
        train_files, held_out_files = (
            _Files(
                [path for path, out in zip(files.paths, apart, strict=True) if out == wanted],
                [label for label, out in zip(files.labels, apart, strict=True) if out == wanted],
            )
            for wanted in (False, True)
        )
        splits = ("nine in ten", "one in ten")
        if not len(train_files) or not len(held_out_files):
            raise DataError(
                f"folder {str(root)!r} has {len(files)} images, too few to hold one in ten out;"
                " it can have subfolders train and test"
            )
    shape = _shape_of_first(train_files, preparation)
    train, apart_source = (
        Encoded(files, preparation, 3, shape, classes is not None, on_bad_image)
        for files in (train_files, held_out_files)
    )
    return ImageSet(
        root.name,
        train=train,
        held_out=apart_source,
        classes=classes,
        splits=splits,
        preparation=str(preparation),
    )


def _files_below(root: pathlib.Path) -> tuple[_Files, tuple[str, ...] | None]:
    """All files, in the order of their paths, and the names of their classes if they have some."""
    entries = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    folders = [path for path in entries if path.is_dir()]
    loose = [path for path in entries if _is_file(path)]
    if folders and loose:
        raise DataError(
            f"folder {str(root)!r} has images beside subfolders ({loose[0].name} beside"
            f" {folders[0].name}); subfolders are classes, so each image has to be in one"
        )
    if not folders:
        if not loose:
            raise DataError(f"folder {str(root)!r} is empty; it has to hold images")
        return _Files(loose, [None] * len(loose)), None
    paths: list[pathlib.Path] = []
    labels: list[int | None] = []
    for label, folder in enumerate(folders):
        inside = sorted(_walk(folder))
        if not inside:
            raise DataError(
                f"folder {str(folder)!r} is empty; it is a class, which has to have images"
            )
        paths += inside
        labels += [label] * len(inside)
    return _Files(paths, labels), tuple(folder.name for folder in folders)


def _walk(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (pathlib.Path(parent, name) for name in names if not name.startswith("."))
        yield from filter(_is_file, paths)


def _raise(error: OSError) -> NoReturn:
    raise DataError(f"folder {error.filename!r} cannot be read ({error.strerror})") from error


def _is_file(path: pathlib.Path) -> bool:
    """Also a link that leads nowhere, which is an image that is missing."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def _is_held_out(path: pathlib.Path) -> bool:
    return int.from_bytes(hashlib.sha256(path.as_posix().encode()).digest()[:8]) % 10 == 0


def _shape_of_first(files: _Files, preparation: Preparation) -> tuple[int, int, int]:
    """Of what comes out: of all images if there is a size, else of the first that is one."""
    if preparation.size is not None:
        return preparation.shape_of((None, None, 3))
    for path in files.paths:
        encoded = _bytes_of(path)
        if isinstance(encoded, bytes):
            try:
                picture = decode(encoded, 3)
            except DataError:
                continue
            return preparation.shape_of((picture.height, picture.width, 3))
    raise DataError(f"none of the {len(files)} files, such as {files.paths[0]}, is an image")


def _bytes_of(path: pathlib.Path) -> bytes | OSError:
    try:
        return path.read_bytes()
    except OSError as error:
        return error
