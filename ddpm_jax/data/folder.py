"""A folder of images, with a subfolder for each class.

These layouts are supported::

    root/train/cat/1.png    root/val/cat/7.jpg       with splits: both folders exist
    root/cat/1.png          root/dog/deep/down.jpg   no splits: one image in ten is held out
    root/train/cat/1.png                             the same, if train is the only subfolder
    root/1.png                                       no subfolders: no classes

A split is recognized by its name, in upper or lower case: train or training; test, validation,
held_out, eval, dev and the like. If several of the latter exist, the first in the order of
`_HELD_OUT` is held out, and the others are not used.

Without splits the file's name decides whether it is held out (the SHA-256 of its path below the
class folder). A file therefore stays in its part if files are added or removed, or if its class is
renamed. At least one of two or more images is held out, and each class keeps at least one training
image: if the hash holds out too few images, the next ones by hash are held out, too. They may
change when files are added.

Links to folders are followed, each real folder once in a class. Names that begin with a dot are
ignored.
"""

import collections
import dataclasses
import errno
import hashlib
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NoReturn

from ddpm_jax.data.encoded import Encoded, OnBadImage, Record
from ddpm_jax.data.images import DataError
from ddpm_jax.data.preparation import STORED, BadImageError, Preparation, decode
from ddpm_jax.data.source import ImageSet

__all__ = ["read_folder"]

_TRAIN = ("train", "training")
_HELD_OUT = (
    *("test", "testing", "validation", "valid", "val", "heldout", "holdout"),
    *("evaluation", "eval", "development", "dev"),
)
"""Letters of the names of held-out splits; the first that exists is held out."""
_SPLIT = re.compile(rf"({'|'.join((*_TRAIN, *_HELD_OUT))})(set|split|images?|data)?[0-9]*")
"""Also as in `test1`, `train2017` and `Training_set`."""
_MOST_BYTES = 2**29
"""Largest file that is read, in bytes; an image of 89 million pixels has fewer."""


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

    def size(self, index: int) -> int:
        """Size of a file in bytes; -1 if it cannot be read."""
        try:
            return self.paths[index].stat().st_size
        except OSError:
            return -1


def read_folder(
    root: pathlib.Path,
    *,
    preparation: Preparation = STORED,
    on_bad_image: OnBadImage = "stop",
) -> ImageSet:
    """Lists the images of a folder; the module describes the layouts. They are decoded later.

    Args:
        root: the folder.
        preparation: applied to each image.
        on_bad_image: what to do with an image that cannot be decoded.

    Returns:
        The training images and the held-out ones; three channels unless they become grey.

    Raises:
        DataError: the folder does not exist or has no images, a class has no images, there are
            images beside the class folders, the splits have different classes, or the first image
            cannot be decoded.
    """
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        file = (
            f"; to read an .npz, take --data archive --data.path {root}" if root.is_file() else ""
        )
        raise DataError(f"folder {str(root)!r} {what}{file}")
    splits = _splits(root)
    if splits is not None:
        training, held_out, *unused = splits
        names = (training, held_out)
        train_files, classes = _files_below(root / training)
        held_out_files, held_out_classes = _files_below(root / held_out)
        if classes != held_out_classes:
            differ = sorted(set(classes or ()) ^ set(held_out_classes or ()))
            raise DataError(
                f"folder {str(root)!r} has different classes in {training} and in {held_out}"
                f" ({', '.join(differ[:3])}); both need the same subfolders"
            )
    else:
        names, unused = ("nine in ten", "one in ten"), []
        subfolders = _subfolders(root)
        alone = len(subfolders) == 1 and _split_name(subfolders[0]) in _TRAIN
        below = root / subfolders[0] if alone else root  # which is no class
        files, classes = _files_below(below)
        if len(files) < 2:
            raise DataError(
                f"folder {str(root)!r} has {len(files)} images; it needs two or more so that one"
                " can be held out, or subfolders train and test"
            )
        parts = [path.relative_to(below).parts for path in files.paths]
        inside = ["/".join(of_path if classes is None else of_path[1:]) for of_path in parts]
        apart = _are_held_out(inside, files.labels)
        train_files, held_out_files = (
            _Files(
                [path for path, out in zip(files.paths, apart, strict=True) if out == wanted],
                [label for label, out in zip(files.labels, apart, strict=True) if out == wanted],
            )
            for wanted in (False, True)
        )
    shape = _shape_of_first(train_files, preparation)
    train, apart_source = (
        Encoded(files, preparation, 3, shape, classes is not None, on_bad_image)
        for files in (train_files, held_out_files)
    )
    return ImageSet(
        root.name or "images",
        train=train,
        held_out=apart_source,
        classes=classes,
        splits=names,
        unused=tuple(unused),
        preparation=str(preparation),
    )


def _entries(folder: pathlib.Path) -> list[pathlib.Path]:
    """Paths of the entries that are not hidden, in the order of their names."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        _raise(error)


def _subfolders(root: pathlib.Path) -> list[str]:
    return [path.name for path in _entries(root) if path.is_dir()]


def _split_name(folder: str) -> str | None:
    """The split that a folder's name stands for: "Training_set" is "training"."""
    match = _SPLIT.fullmatch(re.sub(r"[\W_]", "", folder.casefold()))
    return match[1] if match else None


def _splits(root: pathlib.Path) -> list[str] | None:
    """The training folder, the held-out folder, and all unused ones; None without splits.

    Raises:
        DataError: there are only splits, and none or several for training.
    """
    subfolders = _subfolders(root)
    training = [name for name in subfolders if _split_name(name) in _TRAIN]
    held_out = [name for split in _HELD_OUT for name in subfolders if _split_name(name) == split]
    others = [name for name in subfolders if name not in (*training, *held_out)]
    if len(training) == 1 and held_out:
        return [*training, *held_out, *others]
    if held_out and not others:
        raise DataError(
            f"folder {str(root)!r} has the splits {', '.join(map(repr, subfolders))}; it needs one"
            " for training, such as train, and one to hold out, such as test"
        )
    return None


def _files_below(root: pathlib.Path) -> tuple[_Files, tuple[str, ...] | None]:
    """All files, in the order of their paths, and the names of their classes if they have some."""
    entries = _entries(root)
    folders = [path for path in entries if path.is_dir() and not _leads_back(path, root)]
    loose = [path for path in entries if _is_file(path)]
    if folders and loose:
        raise DataError(
            f"folder {str(root)!r} has images beside subfolders ({loose[0].name} beside"
            f" {folders[0].name}); subfolders are classes, so each image has to be in one"
        )
    if not folders:
        if not loose:
            raise DataError(f"folder {str(root)!r} is empty; it has to contain images")
        return _Files(loose, [None] * len(loose)), None
    paths: list[pathlib.Path] = []
    labels: list[int | None] = []
    for label, folder in enumerate(folders):
        inside = sorted(_walk(folder))
        if not inside:
            raise DataError(
                f"folder {str(folder)!r} is empty; a folder of a class has to contain images"
            )
        paths += inside
        labels += [label] * len(inside)
    return _Files(paths, labels), tuple(folder.name for folder in folders)


def _walk(top: pathlib.Path) -> Iterator[pathlib.Path]:
    """All files below a folder; each real folder once, by its own path before that of a link."""
    walked: set[tuple[int, int]] = set()
    tops = [top]
    while tops:
        links: list[pathlib.Path] = []
        for place, folders, names in (
            entry for top in tops for entry in os.walk(top, onerror=_raise)
        ):
            parent = pathlib.Path(place)
            status = parent.stat()
            if (status.st_dev, status.st_ino) in walked:
                folders.clear()
                continue
            walked.add((status.st_dev, status.st_ino))
            folders[:] = [name for name in folders if not name.startswith(".")]
            _check_no_splits(parent, folders)
            linked = (parent / name for name in folders if (parent / name).is_symlink())
            links += (path for path in linked if not _leads_back(path, top))
            paths = (parent / name for name in names if not name.startswith("."))
            yield from filter(_is_file, paths)
        tops = sorted(links)


def _leads_back(path: pathlib.Path, top: pathlib.Path) -> bool:
    """Whether it is a link to a folder that contains it, or that contains `top`: a loop."""
    if not path.is_symlink():
        return False
    target = path.resolve()
    return any(place.resolve().is_relative_to(target) for place in (path.parent, top))


def _check_no_splits(parent: pathlib.Path, folders: Sequence[str]) -> None:
    """Raises DataError if there are splits in a class: held-out images would be trained on."""
    by_split = {_split_name(name): name for name in folders}
    training, held_out = (
        next((by_split[split] for split in splits if split in by_split), None)
        for splits in (_TRAIN, _HELD_OUT)
    )
    if training is not None and held_out is not None:
        raise DataError(
            f"folder {str(parent)!r} is inside a class and has the splits {training!r} and"
            f" {held_out!r}; splits have to be outside of the classes, so move them up, or set the"
            " path to the folder that has them"
        )


def _raise(error: OSError) -> NoReturn:
    raise DataError(f"folder {error.filename!r} cannot be read ({error.strerror})") from error


def _is_file(path: pathlib.Path) -> bool:
    """Whether it is a file, or a broken link, which stands for a missing image."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def _are_held_out(names: Sequence[str], labels: Sequence[int | None]) -> list[bool]:
    """One in ten by a hash of its name; at least one of two, and not the last of its class."""
    orders = [_order(name) for name in names]
    last: dict[int | None, int] = {}
    for index, label in enumerate(labels):
        if label not in last or orders[index] > orders[last[label]]:
            last[label] = index
    stay = set(last.values())
    if len(stay) == len(names):  # one image in each class
        stay = {max(stay, key=orders.__getitem__)}
    free = {order for index, order in enumerate(orders) if index not in stay}
    chosen = {order for order in free if order[0] == 0}
    # Also with one: if only an empty set got one, it would lose it when a file by hash is added.
    if len(chosen) < 2 and free > chosen:
        chosen.add(min(free - chosen))
    # Files with the same name in several classes are in the same part.
    return [index not in stay and order in chosen for index, order in enumerate(orders)]


def _order(name: str) -> tuple[int, int]:
    """A place in a random order that is always the same; one in ten begins with 0."""
    # A name can have two encodings in Unicode, and systems differ in which they store.
    encoded = unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")
    word = int.from_bytes(hashlib.sha256(encoded).digest()[:8])
    return word % 10, word


def _shape_of_first(files: _Files, preparation: Preparation) -> tuple[int, int, int]:
    """The shape of the prepared images: by `size`, or else that of the first good image."""
    if preparation.size is not None:
        return preparation.shape_of((None, None, 3))
    reasons: dict[str, pathlib.Path] = {}
    counts: collections.Counter[str] = collections.Counter()
    for path in files.paths:
        encoded = _bytes_of(path)
        try:
            if isinstance(encoded, OSError):
                raise BadImageError(f"cannot be read ({encoded.strerror})")
            picture = decode(encoded, 3)
        except BadImageError as error:
            reasons.setdefault(str(error), path)
            counts[str(error)] += 1
            continue
        return preparation.shape_of((picture.height, picture.width, 3))
    ((reason, _),) = counts.most_common(1)
    raise DataError(
        f"none of the {len(files)} files, such as {reasons[reason]}, is a usable image: it {reason}"
    )


def _bytes_of(path: pathlib.Path) -> bytes | OSError:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > _MOST_BYTES:
                return OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            return file.read(_MOST_BYTES)
    except OSError as error:
        return error
