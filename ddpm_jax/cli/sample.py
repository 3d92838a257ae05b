"""`ddpm-jax sample RUN --num 64 --sampler ddim --steps 50 --out grid.png`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console

from ddpm_jax.cli.arguments import check_at_least, check_seed, parse_options, sampling_from
from ddpm_jax.cli.restored import DataPlace, ParamsName, restore_run
from ddpm_jax.config import SamplerName
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import image_grid, save_png
from ddpm_jax.experiment import Experiment, Sampling, make_drawer
from ddpm_jax.files import whole_file
from ddpm_jax.samplers import Spacing
from ddpm_jax.terminal import say

__all__ = ["run"]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Draws images from a finished or running run. The data set need not be there."""

    run: tyro.conf.Positional[Path]
    """The run directory."""
    num: int = 64
    """How many images."""
    sampler: SamplerName | None = None
    """By default that of the run's config, and so are steps, spacing and guidance."""
    steps: int | None = None
    """Steps of the sampler."""
    spacing: Spacing | None = None
    """How they are spread over the chain."""
    label: str | None = None
    """The class of all images, by its name or its number, of a run with classes; by default one
    after the other."""
    guidance: float | None = None
    """1 is the network as it is, more is guided."""
    batch_size: int | None = None
    """Images drawn at once; by default evaluation.batch_size of the run. They are the same."""
    out: Path = Path("samples.png")
    """A .png for a grid, a .npz for the uint8 grey levels as array `images`."""
    seed: int = 0
    params: ParamsName = "ema"
    """The moving average of the parameters, or the raw ones."""
    sigma_rel: float | None = None
    """In their place an average of this relative width, of a run with train.post_hoc_ema."""
    skip_missing_snapshots: bool = False
    """Makes that average of the snapshots that are sound, where others are missing or damaged."""
    data: DataPlace = dataclasses.field(default_factory=DataPlace)


def run(arguments: Sequence[str], console: Console) -> None:
    """Draws and writes one file."""
    asked: Arguments = parse_options(Arguments, "ddpm-jax sample", arguments)
    if asked.out.suffix not in (".png", ".npz"):
        raise UserError(f"--out is {str(asked.out)!r}; its name has to end in .png or .npz")
    if not asked.out.parent.is_dir():
        raise UserError(f"--out is {str(asked.out)!r}; there is no folder {asked.out.parent}")
    if asked.out.is_dir():
        raise UserError(f"--out is {str(asked.out)!r}, which is a folder")
    check_seed(asked.seed)
    check_at_least(asked, 1, "num", "batch_size")
    restored = restore_run(
        asked.run,
        data=asked.data,
        with_images=False,
        sigma_rel=asked.sigma_rel,
        skip_missing_snapshots=asked.skip_missing_snapshots,
    )
    experiment = restored.experiment
    how = sampling_from(asked, experiment)
    say(console, f"drawing {asked.num} images of step {restored.step}")
    images = _draw(asked, experiment, restored.params_of(asked.params), how)
    levels = experiment.spec.levels
    if asked.out.suffix == ".png":
        save_png(asked.out, image_grid(images, levels=levels))
    else:
        with whole_file(asked.out) as file:
            np.savez_compressed(file, images=images, levels=levels)
    steps = how.steps or experiment.process.num_steps
    say(
        console,
        f"{asked.num} images of step {restored.step} in {asked.out}"
        f" ({how.sampler}, {steps} steps{_class(how, experiment)})",
    )


def _draw(asked: Arguments, experiment: Experiment, params: Any, how: Sampling) -> np.ndarray:
    """In batches; which ones does not matter."""
    size = min(asked.num, asked.batch_size or experiment.config.evaluation.batch_size)
    drawer = make_drawer(experiment, num=size, how=how)
    key = jax.random.key(asked.seed, impl="threefry2x32")  # see Experiment.key
    batches = [drawer(params, key, first).images for first in range(0, asked.num, size)]
    return np.concatenate(batches)[: asked.num]


def _class(how: Sampling, experiment: Experiment) -> str:
    """Which class was drawn, if one was asked for."""
    names = experiment.spec.classes
    if how.label is None or names is None:
        return ""
    return f", class {how.label}, {names[how.label]!r}"
