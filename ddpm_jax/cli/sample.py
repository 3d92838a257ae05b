"""`ddpm-jax sample RUN --num 64 --sampler ddim --steps 50 --out grid.png`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console

from ddpm_jax.cli.arguments import check_at_least, check_sampling, check_seed
from ddpm_jax.cli.restored import ParamsName, restore_run
from ddpm_jax.config import SamplerName
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import image_grid, save_png
from ddpm_jax.experiment import Experiment, Sampling, make_drawer, say
from ddpm_jax.samplers import Spacing

__all__ = ["run"]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Draws images from a finished or running run."""

    run: tyro.conf.Positional[Path]
    """The run directory."""
    num: int = 64
    """How many images."""
    sampler: SamplerName = "ancestral"
    steps: int | None = None
    """Steps of the sampler; by default all T."""
    spacing: Spacing = "linspace"
    """How they are spread over the chain."""
    label: int | None = None
    """The class of all images, of a run with classes; by default one after the other."""
    guidance: float | None = None
    """1 is the network as it is, more is guided; by default as the run's config says."""
    batch_size: int | None = None
    """Images drawn at once; by default evaluation.batch_size of the run. They are the same."""
    out: Path = Path("samples.png")
    """A .png for a grid, a .npz for the uint8 grey levels as array `images`."""
    seed: int = 0
    params: ParamsName = "ema"
    """The moving average of the parameters, or the raw ones."""
    sigma_rel: float | None = None
    """In their place an average of this relative width, of a run with train.post_hoc_ema."""
    data_dir: str | None = None
    """Where the dataset is, if not where the run found it."""


def run(arguments: Sequence[str], console: Console) -> None:
    """Draws and writes one file."""
    asked = tyro.cli(Arguments, prog="ddpm-jax sample", args=arguments)
    if asked.out.suffix not in (".png", ".npz"):
        raise UserError(f"--out is {str(asked.out)!r}; its name has to end in .png or .npz")
    if not asked.out.parent.is_dir():
        raise UserError(f"--out is {str(asked.out)!r}; there is no folder {asked.out.parent}")
    if asked.out.is_dir():
        raise UserError(f"--out is {str(asked.out)!r}, which is a folder")
    check_seed(asked.seed)
    check_at_least(asked, 1, "num", "batch_size")
    run = restore_run(asked.run, asked.data_dir, asked.sigma_rel)
    experiment, step = run.experiment, run.step
    images = _draw(asked, experiment, run.chosen(asked.params))
    levels = experiment.images.levels
    if asked.out.suffix == ".png":
        save_png(asked.out, image_grid(images, levels=levels))
    else:
        np.savez_compressed(asked.out, images=images, levels=levels)
    say(console, f"{asked.num} images of step {step} in {asked.out}")


def _draw(asked: Arguments, experiment: Experiment, params: Any) -> np.ndarray:
    """In batches; which ones does not matter."""
    evaluation = experiment.config.evaluation
    guidance = evaluation.guidance if asked.guidance is None else asked.guidance
    how = Sampling(asked.sampler, asked.steps, asked.spacing, guidance, asked.label)
    check_sampling(how, experiment)
    size = min(asked.num, asked.batch_size or evaluation.batch_size)
    drawer = make_drawer(experiment, num=size, how=how)
    key = jax.random.key(asked.seed, impl="threefry2x32")  # see Experiment.key
    batches = [drawer(params, key, first).images for first in range(0, asked.num, size)]
    return np.concatenate(batches)[: asked.num]
