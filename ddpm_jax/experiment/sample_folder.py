"""Images drawn into a folder of PNG files, so that an interrupted draw continues where it was.

A thousand images are in each subfolder, and their names are their numbers::

    DIR/samples.json
    DIR/00000/0000000.png ... DIR/00000/0000999.png
    DIR/00001/0001000.png ...

Pixels have 256 grey levels, whatever the levels of the run. `samples.json` says what the images
follow from: parameters, process, sampler, seed. Images that are there already are not drawn again,
more images of the same are drawn to them, and images of other settings are refused.

Several processes share out the subfolders. Each draws its own on its own devices, into a folder on
a disk that all of them see.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from ddpm_jax.config import Sampler, flat, plain
from ddpm_jax.data import to_bytes
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.sample_sets import ABOUT
from ddpm_jax.experiment.cache import params_sha256
from ddpm_jax.experiment.experiment import Experiment
from ddpm_jax.experiment.sampling import Drawer, make_drawer
from ddpm_jax.files import (
    is_partial,
    json_digest,
    locked_folder,
    read_json,
    whole_files,
    write_json,
)
from ddpm_jax.parallel import hosts
from ddpm_jax.parallel.shares import own_blocks
from ddpm_jax.training import SaveError

__all__ = [
    "BLOCK",
    "Draw",
    "draw_in_memory",
    "draw_into_folder",
    "labels_of_images",
    "settings_of",
    "writing",
]

BLOCK = 1000
"""Images in a subfolder."""
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FEW_SECONDS, _MANY_SECONDS = 10, 60
"""Seconds until the first line about the progress, and between two lines."""


@dataclasses.dataclass(frozen=True, eq=False)
class Draw:
    """The images of a run that are wanted, and how they are drawn."""

    experiment: Experiment
    """On the devices of this process."""
    params: Any
    """Of the network."""
    num: int
    """Number of images."""
    sampler: Sampler
    seed: int
    """Of all images; image i has the key of its number."""
    label: int | None
    """Class of all images; None for all classes in turn, or for a run without classes."""
    batch_size: int
    """Images drawn at once by all processes. The images do not depend on it."""


def settings_of(draw: Draw) -> dict[str, Any]:
    """All that the images follow from, as JSON holds it."""
    experiment = draw.experiment
    config = experiment.config
    labelled = bool(config.network.classes)
    measured = experiment.measured
    settings = {
        "params": params_sha256(draw.params),
        "schedule": plain(config.schedule),
        "process": plain(config.process),
        "measured": None if measured is None else json_digest(np.asarray(measured).tolist()),
        "network": plain(config.network),
        "sampler": plain(draw.sampler),
        "seed": draw.seed,
        "label": draw.label,
        "classes": list(experiment.spec.trained_classes) if labelled else None,
        "shape": list(experiment.spec.shape),
        "levels": experiment.spec.levels,
    }
    plain_settings: dict[str, Any] = json.loads(json.dumps(settings))  # tuples are lists
    return plain_settings


def labels_of_images(draw: Draw, first: int, last: int) -> np.ndarray | None:
    """The classes of these images, int64; None for a run without classes."""
    experiment = draw.experiment
    if not experiment.config.network.classes:
        return None
    if draw.label is not None:
        return np.full(last - first, draw.label, np.int64)
    classes = np.asarray(experiment.spec.trained_classes, np.int64)
    return classes[np.arange(first, last) % len(classes)]


def draw_in_memory(draw: Draw) -> np.ndarray:
    """The images in memory, uint8 `[num, height, width, channel]` with the levels of the run."""
    drawer, size = _drawer(draw, draw.num)
    batches = [drawer(draw.params, _key(draw), first).images for first in range(0, draw.num, size)]
    return np.concatenate(batches)[: draw.num]


def draw_into_folder(
    folder: Path, draw: Draw, report: Callable[[str], None], *, name: str = "--out"
) -> None:
    """Draws those of the images that are not in the folder; returns when all processes have.

    Args:
        folder: of the images; it is made if it is not there.
        draw: the images.
        report: gets a line if there are images already, and lines about the progress.
        name: of the argument, for sentences.

    Raises:
        UserError: the folder has images of other settings, or other files, or another process
            draws into it.
        SaveError: the disk refuses. The images that are in the folder stay.
        hosts.HostLossError: another process is lost.
    """
    with _claimed(folder, draw, report, name), writing(folder):
        hosts.check_shared(folder)
        _draw_blocks(folder, draw, report)
        hosts.barrier(f"images are drawn into {folder}")


def _draw_blocks(folder: Path, draw: Draw, report: Callable[[str], None]) -> None:
    drawer, size = _drawer(draw, min(draw.num, BLOCK))
    key, levels = _key(draw), draw.experiment.spec.levels
    progress = _Progress(draw.num, report)
    for first, count in own_blocks(draw.num, BLOCK):
        place = folder / f"{first // BLOCK:05d}"
        missing = _missing(place, first, count, draw.experiment.spec.shape)
        progress.skip(count - len(missing))
        for batch in _batches(missing, size):
            images = to_bytes(drawer(draw.params, key, batch[0]).images, levels)
            with whole_files(place) as partial:
                for number in batch:
                    _save_png(partial / _name(number), images[number - batch[0]])
            progress.add(len(batch))


def _drawer(draw: Draw, num: int) -> tuple[Drawer, int]:
    """A function that draws some images, and how many: equal parts of `num`."""
    most = math.ceil(draw.batch_size / jax.process_count())
    size = math.ceil(num / math.ceil(num / most))
    return make_drawer(draw.experiment, num=size, sampler=draw.sampler, label=draw.label), size


def _key(draw: Draw) -> jax.Array:
    return jax.random.key(draw.seed, impl="threefry2x32")  # see Experiment.key


def _batches(numbers: list[int], size: int) -> Iterator[list[int]]:
    """The numbers in parts, each within `size` numbers that follow each other."""
    waiting = numbers
    while waiting:
        batch = [number for number in waiting[:size] if number < waiting[0] + size]
        yield batch
        waiting = waiting[len(batch) :]


def _missing(place: Path, first: int, count: int, shape: tuple[int, int, int]) -> list[int]:
    """The numbers of the images of a subfolder that are not there, or not whole."""
    numbers = range(first, first + count)
    try:
        names = set(os.listdir(place))
    except FileNotFoundError:
        return list(numbers)
    return [n for n in numbers if _name(n) not in names or not _is_whole(place / _name(n), shape)]


def _is_whole(path: Path, shape: tuple[int, int, int]) -> bool:
    """Whether it is a PNG of this shape whose checksums are right; Pillow does not compare them."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    if not content.startswith(_SIGNATURE):
        return False
    place, kind, head = len(_SIGNATURE), b"", b""
    while kind != b"IEND" and place < len(content):
        length = int.from_bytes(content[place : place + 4])
        kind, end = content[place + 4 : place + 8], place + 8 + length
        if zlib.crc32(content[place + 4 : end]) != int.from_bytes(content[end : end + 4]):
            return False
        head = content[place + 8 : end] if kind == b"IHDR" else head
        place = end + 4
    height, width, channels = shape
    stated = struct.pack(">IIBB", width, height, 8, 0 if channels == 1 else 2)
    return kind == b"IEND" and place == len(content) and head.startswith(stated)


def _name(number: int) -> str:
    return f"{number:07d}.png"


def _save_png(path: Path, image: np.ndarray) -> None:
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path, format="PNG")


class _Progress:
    """Lines about images of this process, at intervals."""

    def __init__(self, num: int, report: Callable[[str], None]) -> None:
        self._num, self._report = num, report
        self._skipped = self._ready = self._drawn = 0
        self._began: float | None = None
        self._next = float(_FEW_SECONDS)

    def skip(self, count: int) -> None:
        """Counts images that are there."""
        self._skipped += count
        self._ready += count

    def add(self, count: int) -> None:
        """Counts images that were drawn; the time of the first ones is that of the compiler."""
        self._ready += count
        now = time.monotonic()
        if self._began is None:
            self._began = now
            if self._skipped:
                self._report(f"{self._skipped:,} of these images are there already")
            return
        self._drawn += count
        seconds = now - self._began
        if seconds >= self._next:
            self._next = seconds + _MANY_SECONDS
            processes = jax.process_count()
            ready, rate = self._ready * processes, self._drawn / seconds * processes
            self._report(
                f"{min(ready, self._num):,} of {self._num:,} images, {rate:.3g} images/s,"
                f" {_duration(max(0, self._num - ready) / rate)} to go"
            )


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def _claimed(folder: Path, draw: Draw, report: Callable[[str], None], name: str) -> Iterator[None]:
    """A context in which only the processes of this command draw into the folder."""
    settings = settings_of(draw)
    with contextlib.ExitStack() as stack:
        with hosts.together():
            if hosts.is_first():
                with writing(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                    try:
                        stack.enter_context(locked_folder(folder, wait=False))
                    except BlockingIOError:
                        raise UserError(
                            f"{name} is {str(folder)!r}, into which another process draws; wait for"
                            " it, or take another folder"
                        ) from None
                    before = _num_of_same(folder, settings, name)
                    if before > draw.num:
                        report(f"{folder} is for more images, {before:,}")
                    num = max(draw.num, before)
                    write_json(folder / ABOUT, {"num": num, "follows_from": settings})
        yield


def _num_of_same(folder: Path, settings: dict[str, Any], name: str) -> int:
    """The number of images that the folder was made for; 0 if it is new.

    Raises:
        UserError: it holds images of other settings, or other files.
    """
    about = folder / ABOUT
    if not about.exists():
        others = [entry for entry in os.listdir(folder) if not is_partial(entry, ABOUT)]
        if others:
            raise UserError(
                f"{name} is {str(folder)!r}, which has files but no {ABOUT}, such as"
                f" {min(others)!r}; take a new folder"
            )
        return 0
    stored = read_json(about)
    num, before = stored.get("num"), stored.get("follows_from")
    if not isinstance(num, int) or not isinstance(before, dict):
        raise UserError(f"{str(about)!r} is damaged; take a new folder, or delete this one")
    different = _differences(before, settings)
    if different:
        raise UserError(
            f"{name} is {str(folder)!r}, which has images of other settings"
            f" ({'; '.join(different)}); take another folder, or delete it"
        )
    return num


def _differences(before: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """The settings that differ, in words; at most four."""
    first, second = flat(before), flat(settings)
    changed = [
        f"{key} is {_short(first.get(key))} there and {_short(second.get(key))} here"
        for key in dict.fromkeys([*first, *second])
        if first.get(key) != second.get(key)
    ]
    return list(itertools.islice(changed, 4))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A context in which what the disk refuses is one sentence, with an exit code of its own.

    Args:
        folder: or file that is written.

    Yields:
        None.

    Raises:
        SaveError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise SaveError(
            f"images could not be written to {str(folder)!r} ({error.strerror or error}); those"
            " that are there stay, and the same command continues",
            (),
        ) from error
