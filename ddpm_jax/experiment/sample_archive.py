"""Images drawn into an .npz, as other evaluators read it, without holding all of them in memory.

The array `arr_0` is uint8 `[num, height, width, channel]` with 256 grey levels, as guided-diffusion
writes its samples; `arr_1` is the class of each image, for a run with classes. A run with fewer
grey levels also gets its own as `images`, with their number as `levels`. `about` says in JSON what
the images follow from. The arrays are not compressed, so that a reader can seek in them.

The images are drawn into a folder beside the file, as `sample_folder` does it, which several
processes share and an interrupted draw continues. The first process joins them, and removes the
folder.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ddpm_jax.data import to_bytes
from ddpm_jax.evaluation import SampleSet, open_samples
from ddpm_jax.experiment.sample_folder import (
    BLOCK,
    Draw,
    draw_into_folder,
    labels_of_images,
    settings_of,
    writing,
)
from ddpm_jax.files import whole_file
from ddpm_jax.npz import StreamedArray, open_npz, write_npz
from ddpm_jax.parallel import hosts

__all__ = ["draw_into_archive"]

_MOST_BYTES = 2**24
"""Of the description of what the images follow from."""


def draw_into_archive(path: Path, draw: Draw, report: Callable[[str], None]) -> None:
    """Draws images into an .npz; if it holds them already, only a line says so.

    Args:
        path: of the file.
        draw: the images.
        report: gets lines about the progress.

    Raises:
        UserError, SaveError, hosts.HostLossError: as in `draw_into_folder`.
    """
    about = json.dumps({"num": draw.num, "follows_from": settings_of(draw)}, sort_keys=True)
    if hosts.by_first(lambda: _about_of(path) == about):
        report(f"{path} holds these images already")
        return
    parts = path.with_name(f"{path.name}.parts")
    draw_into_folder(parts, draw, report, name="the folder of the images so far")
    with hosts.together():
        if hosts.is_first():
            with writing(path):
                _join(open_samples(parts), path, draw, about)
                _remove(parts)


def _join(samples: SampleSet, path: Path, draw: Draw, about: str) -> None:
    shape, levels = (draw.num, *samples.shape), draw.experiment.spec.levels
    uint8 = np.dtype(np.uint8)
    arrays = {"arr_0": StreamedArray(shape, uint8, samples.batches(0, draw.num))}
    if labels_of_images(draw, 0, 1) is not None:
        arrays["arr_1"] = StreamedArray((draw.num,), np.dtype(np.int64), _labels(draw))
    if levels != 256:
        to_own = np.zeros(256, np.uint8)
        to_own[to_bytes(np.arange(levels, dtype=np.uint8), levels)] = np.arange(levels)
        own = (to_own[batch] for batch in samples.batches(0, draw.num))
        arrays["images"] = StreamedArray(shape, uint8, own)
        arrays["levels"] = _whole(np.array(levels))
    arrays["about"] = _whole(np.array(about))
    with whole_file(path) as file:
        write_npz(file, arrays)


def _labels(draw: Draw) -> Iterator[np.ndarray]:
    for first in range(0, draw.num, BLOCK):
        labels = labels_of_images(draw, first, min(first + BLOCK, draw.num))
        if labels is not None:
            yield labels


def _whole(array: np.ndarray) -> StreamedArray:
    return StreamedArray(array.shape, array.dtype, [array])


def _about_of(path: Path) -> str | None:
    """What the images of a file follow from; None if it is no file of `draw_into_archive`."""
    try:
        with open_npz(path, most_bytes=_MOST_BYTES) as reader:
            return str(reader.read("about"))
    except Exception:  # whatever another file makes of zipfile, zlib and NumPy
        return None


def _remove(parts: Path) -> None:
    """Removes the folder, and last what says whose images it has."""
    for place in parts.iterdir():
        if place.is_dir():
            shutil.rmtree(place)
    shutil.rmtree(parts)
