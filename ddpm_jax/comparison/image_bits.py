"""Bits per dimension of single held-out images, and the difference of two runs image by image.

Two networks find the same images hard. Therefore the mean of the differences image by image has a
smaller standard error than the difference of two means that were measured apart.
"""

import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ddpm_jax.config import shown
from ddpm_jax.errors import first_line
from ddpm_jax.evaluation.confidence import Estimate, standard_error, symmetric
from ddpm_jax.experiment.cache import params_sha256
from ddpm_jax.experiment.held_out import measure_held_out, per_image_name, save_per_image
from ddpm_jax.experiment.run import alone, restore_run
from ddpm_jax.experiment.run_directory import RunDirectory, RunDirectoryError
from ddpm_jax.experiment.step import trained_model
from ddpm_jax.npz import load_npz

__all__ = [
    "BitsPerImage",
    "PairedDifference",
    "measure_bits_per_image",
    "paired_difference",
    "read_bits_per_image",
]

_MOST_BYTES = 2**30
_IMAGES = {
    "dataset": "data set",
    "preparation": "preparation",
    "held_out_images": "number of held-out images",
    "fingerprint": "content of the data set",
}
"""What says of which images a file is, and how a sentence calls it."""


class BitsPerImage(NamedTuple):
    """What an evaluation stores as bits_per_image_NAME.npz."""

    bits: np.ndarray
    """Bits per dimension of each image that was measured, float64 `[images]`."""
    numbers: np.ndarray
    """Their numbers among all held-out images, `[images]`, rising."""
    about: dict[str, Any]
    """The data set, its preparation, and the step and the parameters of the run."""

    @property
    def mean(self) -> float:
        """Bits per dimension of all images."""
        return float(np.mean(self.bits))

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean over the choice of images; None for one image."""
        return standard_error(self.bits)


class PairedDifference(NamedTuple):
    """The difference of two runs on the same images."""

    difference: Estimate
    """Mean over the images of the first run's bits/dim minus the second's."""
    standard_error: float | None
    """Standard error of this mean over the choice of images; None for one image."""
    better: float
    """Share of the images that have fewer bits by the first run."""
    images: int
    """Number of images."""


def read_bits_per_image(path: Path) -> BitsPerImage:
    """The bits/dim of each image, as an evaluation has written them.

    Raises:
        RunDirectoryError: the file is damaged, or is not such a file.
    """
    remedy = "delete it, and `ddpm-jax evaluate` writes it again"
    try:
        arrays, unchanged = load_npz(path, most_bytes=_MOST_BYTES)
        bits, numbers = arrays["bits_per_dim"], arrays["numbers"]
        about = json.loads(str(arrays["about"].item()))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else first_line(error)
        raise RunDirectoryError(f"{str(path)!r} cannot be read ({reason}); {remedy}") from None
    if not unchanged:
        raise RunDirectoryError(f"{str(path)!r} is damaged: its SHA-256 differs; {remedy}")
    fits = bits.ndim == 1 and bits.shape == numbers.shape and isinstance(about, dict)
    if not fits or not len(bits) or (np.diff(numbers) <= 0).any():
        raise RunDirectoryError(f"{str(path)!r} is of another version of ddpm_jax; {remedy}")
    return BitsPerImage(bits.astype(np.float64), numbers, about)


def measure_bits_per_image(
    path: Path, params: Literal["ema", "raw"], report: Callable[[str], None]
) -> Path:
    """Measures the held-out images with the newest parameters, as `ddpm-jax evaluate` does.

    Args:
        path: the run directory; the file and the cache of its evaluation are written.
        params: which parameters.
        report: gets a line for each thing that a user should know.

    Returns:
        The path of the file.

    Raises:
        UserError: there is no checkpoint or no data set, or the run's evaluation does not measure
            bits/dim.
    """
    directory = RunDirectory(path)
    config = alone(directory.read_config(report=report))
    restored = restore_run(directory, config, only=params, report=report)
    values, experiment = restored.params[params], restored.experiment
    digest, folder = params_sha256(values), directory.evaluation_of(restored.step)
    measured = measure_held_out(
        folder / "cache", config.evaluation, trained_model(experiment), values, digest, report
    )
    if measured.per_image is None:
        name = type(config.evaluation).__name__
        raise RunDirectoryError(
            f"its evaluation is {name}, which does not measure bits/dim of single images"
        )
    file = folder / per_image_name(params)
    about = {"step": restored.step, "params_sha256": digest}
    save_per_image(file, experiment, measured, about)
    return file


def pair(first: BitsPerImage, second: BitsPerImage) -> PairedDifference | str:
    """The difference of two runs over the images that both have measured.

    Returns:
        The bits/dim of the first minus those of the second, or the reason why there is no
        difference.
    """
    for name, words in _IMAGES.items():
        here, there = first.about.get(name), second.about.get(name)
        if here != there:
            values = "" if name == "fingerprint" else f" ({shown(here)}, {shown(there)})"
            return f"the {words} is not the same{values}"
    _, ours, theirs = np.intersect1d(first.numbers, second.numbers, return_indices=True)
    if not len(ours):
        return "no image was measured by both"
    pair_of_bits = first.bits[ours], second.bits[theirs]
    if not all(np.isfinite(bits).all() for bits in pair_of_bits):
        return "the bits/dim of some images are not finite"
    return paired_difference(*pair_of_bits)


def paired_difference(first: np.ndarray, second: np.ndarray) -> PairedDifference:
    """The mean difference of two runs over the same images, d = mean_i (a_i - b_i).

    Its standard error is s / sqrt(n), with s the standard deviation of a_i - b_i over n images; the
    95 % interval is the normal one, d -+ 1.96 s / sqrt(n).

    Args:
        first: bits/dim of each image by the first run, `[images]`.
        second: the same by the second run, in the same order.

    Returns:
        The difference; negative if the first run needs fewer bits.
    """
    differences = first - second
    mean, error = float(np.mean(differences)), standard_error(differences)
    if error is None:
        estimate = Estimate(mean, note="no interval: there is one image only")
    else:
        covers = f"over the choice of the {len(differences)} held-out images"
        estimate = symmetric(mean, error, covers)
    return PairedDifference(estimate, error, float(np.mean(differences < 0)), len(differences))
