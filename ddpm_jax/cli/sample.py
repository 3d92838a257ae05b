"""`ddpm-jax sample RUN --num 64 --sampler ddim --sampler.steps 50 --out grid.png`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console

from ddpm_jax.cli.arguments import (
    DEFAULTS,
    ParamsName,
    check_at_least,
    check_seed,
    parse_for_run,
)
from ddpm_jax.config import Data, Sampler, member_name
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import image_grid, save_png
from ddpm_jax.experiment import Experiment, RunDirectory, alone, make_drawer, restore_run
from ddpm_jax.experiment.sampling import class_of
from ddpm_jax.files import whole_file
from ddpm_jax.terminal import complain, say

__all__ = ["run"]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Draws images from a finished or running run. The data set is not needed."""

    run: tyro.conf.Positional[Path]
    """The run directory."""
    num: int = 64
    """Number of images."""
    sampler: Sampler = DEFAULTS.sampler
    """The sampler; by default that of the run. --sampler ddim takes another one."""
    label: str | None = None
    """Class of all images, by name or number, for a run with classes. By default the classes follow
    each other."""
    batch_size: int | None = None
    """Images drawn at once; by default evaluation.batch_size of the run. The images are the same.
    Lower it if memory runs out."""
    out: Path = Path("samples.png")
    """File to write: a .png with a grid, or an .npz with uint8 grey levels as array `images`."""
    seed: int = 0
    """Seed of the images, in [0, 2^32)."""
    params: ParamsName = "ema"
    """Which parameters: the moving average, or the raw ones."""
    sigma_rel: float | None = None
    """Relative width of a post-hoc average to use in place of these parameters, for a run with
    averages PostHocEMA."""
    skip_missing_snapshots: bool = False
    """Make that average without the snapshots that are missing or damaged."""
    data: Data = DEFAULTS.data
    """Place of the run's data set, for a run without a record of it."""


def run(arguments: Sequence[str], console: Console) -> None:
    """Draws and writes one file."""
    options: Arguments
    options, config = parse_for_run(Arguments, "ddpm-jax sample", arguments)
    if options.out.suffix not in (".png", ".npz"):
        raise UserError(f"--out is {str(options.out)!r}; its name has to end in .png or .npz")
    if not options.out.parent.is_dir():
        raise UserError(f"--out is {str(options.out)!r}; there is no folder {options.out.parent}")
    if options.out.is_dir():
        raise UserError(f"--out is {str(options.out)!r}, which is a folder")
    check_seed(options.seed)
    check_at_least(options, 1, "num", "batch_size")
    restored = restore_run(
        RunDirectory(options.run),
        alone(config),
        with_images=False,
        only=options.params,
        report=complain,
        sigma_rel=options.sigma_rel,
        skip_missing_snapshots=options.skip_missing_snapshots,
    )
    experiment = restored.experiment
    label = class_of(experiment, options.label, "--label")
    say(console, f"drawing {options.num} images of step {restored.step}")
    images = _draw(
        options,
        experiment,
        restored.params.get(options.params) or restored.params["sigma_rel"],
        label,
    )
    levels = experiment.spec.levels
    if options.out.suffix == ".png":
        save_png(options.out, image_grid(images, levels=levels))
    else:
        with whole_file(options.out) as file:
            np.savez_compressed(file, images=images, levels=levels)
    steps = len(options.sampler.times(experiment.process))
    say(
        console,
        f"{options.num} images of step {restored.step} in {options.out}"
        f" ({member_name(type(options.sampler))}, {steps} steps{_class(label, experiment)})",
    )


def _draw(options: Arguments, experiment: Experiment, params: Any, label: int | None) -> np.ndarray:
    """Draws in batches, on which the images do not depend."""
    size = min(options.num, options.batch_size or experiment.config.evaluation.batch_size)
    drawer = make_drawer(experiment, num=size, sampler=options.sampler, label=label)
    key = jax.random.key(options.seed, impl="threefry2x32")  # see Experiment.key
    batches = [drawer(params, key, first).images for first in range(0, options.num, size)]
    return np.concatenate(batches)[: options.num]


def _class(label: int | None, experiment: Experiment) -> str:
    """The class that was drawn, if `--label` names one."""
    names = experiment.spec.classes
    if label is None or names is None:
        return ""
    return f", class {label}, {names[label]!r}"
