"""`ddpm-jax replay RUN --step N`."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from ddpm_jax.cli.arguments import parse_options
from ddpm_jax.cli.restored import DataPlace, build_run, read_config
from ddpm_jax.experiment import Replayed, RunDirectory, replay
from ddpm_jax.files import whole_file
from ddpm_jax.terminal import cell, say

__all__ = ["run"]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """One step of a run once more: which examples and which parameters were bad in it?"""

    run: tyro.conf.Positional[Path]
    """The run directory; nothing is written to it."""
    step: int
    """Counted from 1, as in the log."""
    worst: int = 8
    """Examples and parameters that are shown."""
    json: Path | None = None
    """A file for all of them."""
    data: DataPlace = dataclasses.field(default_factory=DataPlace)


def run(arguments: Sequence[str], console: Console) -> None:
    """Computes, prints, and writes the file that was asked for."""
    asked: Arguments = parse_options(Arguments, "ddpm-jax replay", arguments)
    directory = RunDirectory(asked.run)
    config = read_config(directory, for_training=True)
    experiment = build_run(directory, config, data=asked.data)
    found = replay(experiment, directory, asked.step)
    origin = f"the checkpoint of step {found.replayed_from}" if found.replayed_from else "the start"
    say(
        console,
        f"step {found.step}, replayed from {origin}: loss {found.losses.mean():.6g}, gradient norm"
        f" {np.linalg.norm(list(found.gradient_norms.values())):.6g}",
    )
    bad_losses = int((~np.isfinite(found.losses)).sum())
    bad_norms = int((~np.isfinite(list(found.gradient_norms.values()))).sum())
    say(console, f"not finite: the losses of {bad_losses} of {len(found.losses)} examples,")
    say(console, f"            gradients of {bad_norms} of {len(found.gradient_norms)} parameters")
    console.print(_examples(found, asked.worst))
    console.print(_parameters(found, asked.worst))
    if asked.json is not None:
        with whole_file(asked.json) as file:
            file.write((json.dumps(_plain(found), indent=1) + "\n").encode())


def _examples(found: Replayed, worst: int) -> Table:
    table = Table()
    for heading in ("example", "t", "loss"):
        table.add_column(heading, justify="right")
    for index in _largest(found.losses)[:worst]:
        table.add_row(str(index), str(found.t[index]), f"{found.losses[index]:.6g}")
    return table


def _parameters(found: Replayed, worst: int) -> Table:
    norms = np.array(list(found.gradient_norms.values()))
    table = Table()
    table.add_column("parameter")
    for heading in ("gradient's norm", "its own norm"):
        table.add_column(heading, justify="right")
    names = list(found.gradient_norms)
    for index in _largest(norms)[:worst]:
        own = found.parameter_norms[names[index]]
        table.add_row(cell(names[index]), f"{norms[index]:.6g}", f"{own:.6g}")
    return table


def _largest(values: np.ndarray) -> np.ndarray:
    """Indices, what is not finite first."""
    return np.argsort(-np.where(np.isfinite(values), values, np.inf), kind="stable")


def _plain(found: Replayed) -> dict[str, object]:
    """As JSON, which has no NaN: what is not finite is text."""

    def plain(value: float) -> float | str:
        return value if np.isfinite(value) else str(value)

    return {
        "step": found.step,
        "replayed_from": found.replayed_from,
        "t": found.t.tolist(),
        "losses": [plain(value) for value in found.losses.tolist()],
        "gradient_norms": {name: plain(norm) for name, norm in found.gradient_norms.items()},
        "parameter_norms": {name: plain(norm) for name, norm in found.parameter_norms.items()},
    }
