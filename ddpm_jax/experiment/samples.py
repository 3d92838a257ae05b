"""Many images drawn into files, so that whoever is interrupted goes on where it was.

Files hold a thousand images each, and their folder is named by a hash of all that the images follow
from: parameters, sampler, seed. So files of other parameters are never taken for these, and more
images of the same are drawn to those that are there.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax.experiment.build import Experiment
from ddpm_jax.experiment.directory import write_json
from ddpm_jax.experiment.draw import Sampling, make_drawer
from ddpm_jax.experiment.kept import params_hash, settings_hash
from ddpm_jax.files import whole_file

__all__ = ["SampleFiles", "draw_into"]

_FILE = 1000
"""Images in a file."""


class SampleFiles(NamedTuple):
    """Images in files, read as they are needed."""

    paths: tuple[Path, ...]
    num: int

    def batches(self) -> Iterator[np.ndarray]:
        """All of them, file by file."""
        left = self.num
        for path in self.paths:
            images = np.load(path, allow_pickle=False)[:left]
            left -= len(images)
            yield images

    def first(self, count: int) -> np.ndarray:
        """At most so many, from the first on."""
        found: list[np.ndarray] = []
        for images in self.batches():
            found.append(images[: count - sum(map(len, found))])
            if sum(map(len, found)) >= count:
                break
        return np.concatenate(found)


def draw_into(
    folder: Path,
    experiment: Experiment,
    params: Any,
    *,
    count: int,
    how: Sampling,
    seed: int,
    batch_size: int,
) -> "SampleFiles":
    """The first `count` images of these parameters; those that are there already are not drawn.

    Args:
        folder: of all draws; this one gets a folder of its own in it.
        experiment: whose process and network it is.
        params: of the network.
        count: how many.
        how: sampler, steps, guidance.
        seed: of all images; image i has the key of its number.
        batch_size: images drawn at once; they do not depend on it.
    """
    settings = {"params": params_hash(params), "seed": seed, **how._asdict()}
    own = folder / settings_hash(settings)
    write_json(own / "settings.json", settings)
    key = jax.random.fold_in(experiment.key("evaluation samples"), seed)
    size = min(batch_size, _FILE, count)
    drawer = make_drawer(experiment, num=size, how=how)
    shape, paths = experiment.images.image_shape, []
    for first in range(0, count, _FILE):
        wanted = min(_FILE, count - first)
        path = own / f"{first:07d}.npy"
        if not _has(path, wanted, shape):
            batches = [
                drawer(params, key, place).images for place in range(first, first + wanted, size)
            ]
            with whole_file(path) as file:
                np.save(file, np.concatenate(batches)[:wanted])
        paths.append(path)
    return SampleFiles(tuple(paths), count)


def _has(path: Path, count: int, shape: tuple[int, ...]) -> bool:
    """Whether a file is there, and whole: else it is drawn again."""
    try:
        images: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return images.dtype == np.uint8 and images.shape[1:] == shape and len(images) >= count
