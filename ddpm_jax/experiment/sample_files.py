"""Many images drawn into files, so that an interrupted evaluation continues where it was.

Files hold a thousand images each, and their folder is named by a hash of all that the images follow
from: parameters, sampler, seed. So files of other parameters are never taken for these, and more
images of the same are drawn to those that are there. A file is an .npy and 32 bytes more, the
sha256 of the folder's settings, the number of the first image and the array; one that does not have
it is drawn again.

Several processes share out the files by their numbers. Each draws its own on its own devices, into
a folder on a disk that all of them see.
"""

import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax.config import Sampler, plain
from ddpm_jax.evaluation import EvaluationError
from ddpm_jax.experiment.cache import move_aside_non_file, params_sha256, quiet, settings_digest
from ddpm_jax.experiment.experiment import Experiment
from ddpm_jax.experiment.sampling import make_drawer
from ddpm_jax.files import locked_folder, whole_file, write_json
from ddpm_jax.parallel import hosts, shares

__all__ = ["SampleFiles", "sample_into_files"]

_DIGEST = hashlib.sha256().digest_size


class SampleFiles(NamedTuple):
    """Images in files, read as they are needed."""

    folder: Path
    settings: str
    """What they follow from."""
    num: int
    shape: tuple[int, ...]
    """Of an image."""

    def batches(self, first: int = 0, last: int | None = None) -> Iterator[np.ndarray]:
        """The images `first` to `last` - 1, by default all of them, file by file.

        Raises:
            EvaluationError: a file has changed since it was drawn.
        """
        last = self.num if last is None else last
        for start in range(first - first % shares.BLOCK, last, shares.BLOCK):
            images = self.read(start, min(shares.BLOCK, last - start))
            if images is None:
                raise EvaluationError(
                    f"{str(self.path(start))!r} has changed while it was in use; the same command"
                    " draws it again"
                )
            yield images[max(0, first - start) :]

    def path(self, first: int) -> Path:
        """Of the file whose first image has this number."""
        return self.folder / f"{first:07d}.npy"

    def read(self, first: int, count: int) -> np.ndarray | None:
        """The first `count` images of a file; None unless it is as it was written and has them."""
        try:
            with self.path(first).open("rb") as file:
                # Not all of a file that is far too long.
                content = file.read(shares.BLOCK * math.prod(self.shape) + 10_000)
        except OSError:
            return None
        array, digest = content[:-_DIGEST], content[-_DIGEST:]
        if digest != self._sha256(first, array):
            return None
        images: np.ndarray = np.load(io.BytesIO(array), allow_pickle=False)
        return images[:count] if len(images) >= count and images.shape[1:] == self.shape else None

    def write(self, first: int, images: np.ndarray) -> None:
        """A file of these images, unless another evaluation has written as many since."""
        array = io.BytesIO()
        np.save(array, images)
        with locked_folder(self.folder):  # else few images may replace many that someone reads
            if self.read(first, len(images)) is None:
                with whole_file(self.path(first)) as file:
                    file.write(array.getvalue() + self._sha256(first, array.getvalue()))

    def _sha256(self, first: int, array: bytes) -> bytes:
        return hashlib.sha256(f"{self.settings} {first};".encode() + array).digest()

    def first(self, count: int) -> np.ndarray:
        """At most so many, from the first on."""
        batches: list[np.ndarray] = []
        for images in self.batches():
            batches.append(images[: count - sum(map(len, batches))])
            if sum(map(len, batches)) >= count:
                break
        return np.concatenate(batches)


def sample_into_files(
    folder: Path,
    experiment: Experiment,
    params: Any,
    *,
    count: int,
    sampler: Sampler,
    seed: int,
    batch_size: int,
    report: Callable[[str], None] = quiet,
) -> SampleFiles:
    """The first `count` images of these parameters; those that are there already are not drawn.

    All processes call it; it returns when all of them have drawn their files.

    Args:
        folder: of all draws, shared by all processes; this one gets a folder of its own in it.
        experiment: whose process and network it is, on the devices of this process.
        params: of the network.
        count: how many.
        sampler: how they are drawn.
        seed: of all images; image i has the key of its number.
        batch_size: images drawn at once; they do not depend on it.
        report: gets a line of each file that is not as it was written.

    Raises:
        hosts.HostLossError: another process could not draw its files.
    """
    settings = {"params": params_sha256(params), "seed": seed, **plain(sampler)}
    own, shape = folder / settings_digest(settings), experiment.spec.shape
    files = SampleFiles(own, json.dumps(settings, sort_keys=True), count, shape)
    key = jax.random.fold_in(experiment.key("evaluation samples"), seed)
    size = min(batch_size, shares.BLOCK, count)
    drawer = make_drawer(experiment.at(params), num=size, sampler=sampler)
    with hosts.together():
        move_aside_non_file(own / "settings.json", report)
        write_json(own / "settings.json", settings)
        for first, wanted in shares.own_blocks(count, shares.BLOCK):
            path = files.path(first)
            move_aside_non_file(path, report)
            if files.read(first, wanted) is not None:
                continue
            if path.exists() and files.read(first, 0) is None:
                report(f"{str(path)!r} has been altered: its SHA-256 differs; drawn again")
            batches = [
                drawer(params, key, place).images for place in range(first, first + wanted, size)
            ]
            files.write(first, np.concatenate(batches)[:wanted])
    return files
