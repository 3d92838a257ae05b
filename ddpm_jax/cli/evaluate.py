"""`ddpm-jax evaluate RUN`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro
from rich.console import Console

from ddpm_jax.cli.restored import ParamsName, restore_run
from ddpm_jax.cli.results import print_results
from ddpm_jax.experiment import evaluate

__all__ = ["run"]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Bits per dimension of a finished or running run on held-out images."""

    run: tyro.conf.Positional[Path]
    """The run directory."""
    params: ParamsName = "ema"
    """The moving average of the parameters, or the raw ones."""
    sigma_rel: float | None = None
    """In their place an average of this relative width, of a run with train.post_hoc_ema."""
    data_dir: str | None = None
    """Where the dataset is, if not where the run found it."""


def run(arguments: Sequence[str], console: Console) -> None:
    """Measures and prints; writes nothing."""
    asked = tyro.cli(Arguments, prog="ddpm-jax evaluate", args=arguments)
    experiment, params, step = restore_run(asked.run, asked.params, asked.data_dir, asked.sigma_rel)
    print_results(console, {"step": step, **evaluate(experiment, params)})
