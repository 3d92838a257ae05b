"""`ddpm-jax replay RUN --step N`."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from ddpm_jax.cli.arguments import DEFAULTS, parse_for_run
from ddpm_jax.config import Data
from ddpm_jax.experiment import Replayed, RunDirectory, build_run, replay
from ddpm_jax.files import whole_file
from ddpm_jax.terminal import cell, say

__all__ = ["run"]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Computes one step of a run again, and shows its worst examples and parameters."""

    run: tyro.conf.Positional[Path]
    """The run directory; nothing is written to it."""
    step: int
    """Number of the step, from 1, as in the log."""
    worst: int = 8
    """Number of examples and of parameters to show."""
    json: Path | None = None
    """File for all examples and parameters."""
    data: Data = DEFAULTS.data
    """Place of the run's data set, if it has moved."""


def run(arguments: Sequence[str], console: Console) -> None:
    """Computes, prints, and writes the file of `--json`."""
    options: Arguments
    options, config = parse_for_run(Arguments, "ddpm-jax replay", arguments, for_training=True)
    directory = RunDirectory(options.run)
    experiment = build_run(directory, dataclasses.replace(config, hosts=DEFAULTS.hosts))
    result = replay(experiment, directory, options.step)
    origin = (
        f"the checkpoint of step {result.replayed_from}" if result.replayed_from else "the start"
    )
    say(
        console,
        f"step {result.step}, replayed from {origin}: loss {result.losses.mean():.6g},"
        f" gradient norm {np.linalg.norm(list(result.gradient_norms.values())):.6g}",
    )
    bad_losses = int((~np.isfinite(result.losses)).sum())
    bad_norms = int((~np.isfinite(list(result.gradient_norms.values()))).sum())
    say(console, f"not finite: the losses of {bad_losses} of {len(result.losses)} examples,")
    say(
        console,
        f"            gradients of {bad_norms} of {len(result.gradient_norms)} parameters",
    )
    console.print(_examples(result, options.worst))
    console.print(_parameters(result, options.worst))
    if options.json is not None:
        with whole_file(options.json) as file:
            file.write((json.dumps(_plain(result), indent=1) + "\n").encode())


def _examples(result: Replayed, worst: int) -> Table:
    table = Table()
    for heading in ("example", "t", "loss"):
        table.add_column(heading, justify="right")
    for index in _largest(result.losses)[:worst]:
        table.add_row(str(index), str(result.t[index]), f"{result.losses[index]:.6g}")
    return table


def _parameters(result: Replayed, worst: int) -> Table:
    norms = np.array(list(result.gradient_norms.values()))
    table = Table()
    table.add_column("parameter")
    for heading in ("gradient's norm", "its own norm"):
        table.add_column(heading, justify="right")
    names = list(result.gradient_norms)
    for index in _largest(norms)[:worst]:
        own = result.parameter_norms[names[index]]
        table.add_row(cell(names[index]), f"{norms[index]:.6g}", f"{own:.6g}")
    return table


def _largest(values: np.ndarray) -> np.ndarray:
    """Indices from the largest value down; values that are not finite come first."""
    return np.argsort(-np.where(np.isfinite(values), values, np.inf), kind="stable")


def _plain(result: Replayed) -> dict[str, object]:
    """Values for JSON; those that are not finite become text, because JSON has no NaN."""

    def plain(value: float) -> float | str:
        return value if np.isfinite(value) else str(value)

    return {
        "step": result.step,
        "replayed_from": result.replayed_from,
        "t": result.t.tolist(),
        "losses": [plain(value) for value in result.losses.tolist()],
        "gradient_norms": {name: plain(norm) for name, norm in result.gradient_norms.items()},
        "parameter_norms": {name: plain(norm) for name, norm in result.parameter_norms.items()},
    }
