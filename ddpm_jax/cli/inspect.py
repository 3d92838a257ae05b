"""`ddpm-jax inspect CONFIG [overrides]`, or `ddpm-jax inspect RUN`."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from ddpm_jax.cli.arguments import parse_config
from ddpm_jax.config import OWN, Config, flat, make_process, shown, validate
from ddpm_jax.experiment import RunDirectory, image_spec_of, make_network
from ddpm_jax.experiment.imported import imported_files
from ddpm_jax.models import layer_table
from ddpm_jax.terminal import cell, say
from ddpm_jax.training.manifest import step_folders

__all__ = ["run"]


def run(arguments: Sequence[str], console: Console) -> None:
    """Prints the forward process and the network of a config as tables; needs no data set.

    For a run it prints the stored config, and executes nothing.
    """
    if arguments and Path(arguments[0]).is_dir():
        _inspect_run(RunDirectory(arguments[0]), console)
        return
    config = parse_config("inspect", arguments)
    config = validate(config)
    spec = image_spec_of(config)
    shape, model = spec.shape, make_network(config, spec)
    if config.process.placeholder(shape) is not None:
        name = type(config.process).__name__
        say(console, f"process: {name}, which is measured on the images when a run begins")
    else:
        console.print(_process_table(config, shape))
    layers = layer_table(model, shape, labelled=config.network.classes > 0)
    table = Table(title=cell(f"{config.data.title}: one {'x'.join(map(str, shape))} image"))
    table.add_column("layer")
    table.add_column("kind")
    for heading in ("output", "parameters", "FLOPs"):
        table.add_column(heading, justify="right")
    for index, layer in enumerate(layers):
        table.add_row(
            cell(layer.name),
            cell(layer.kind),
            "x".join(map(str, layer.output)),
            f"{layer.parameters:,}",
            f"{layer.flops:,}",
            end_section=index == len(layers) - 2,
        )
    console.print(table)


def _process_table(config: Config, shape: tuple[int, int, int]) -> Table:
    """The log SNR over t, in the modes that lose the signal first and last."""
    process = make_process(config.schedule, config.process, shape)
    times = np.unique(np.linspace(0, process.num_steps - 1, 5).round().astype(np.int32))
    log_snr = np.log(np.asarray(process.snr(jnp.asarray(times))).reshape(len(times), -1))
    modes = f"{log_snr.shape[1]} modes" if log_snr.shape[1] > 1 else "one mode"
    table = Table(title=cell(f"the process: {type(config.process).__name__}, {modes}"))
    for heading in ("t", "least log SNR", "greatest"):
        table.add_column(heading, justify="right")
    for t, least, greatest in zip(times, log_snr.min(axis=1), log_snr.max(axis=1), strict=True):
        table.add_row(str(t), f"{least:.2f}", f"{greatest:.2f}")
    return table


def _inspect_run(run: RunDirectory, console: Console) -> None:
    """The stored config, whether its copy of the config file is the stored one, and the steps."""
    stored = run.read_stored()
    table = Table(title=cell(f"the config of {run.path}"))
    table.add_column("field")
    table.add_column("value")
    for name, value in flat(stored).items():
        table.add_row(cell(name), cell(value if isinstance(value, str) else shown(value)))
    console.print(table)
    source = stored.get("source")
    if isinstance(source, dict):
        say(console, f"defined in {source.get('name')}: {', '.join(_own_members(stored))}")
        copy = run.config_copy
        is_file = copy.is_file()
        sha256 = hashlib.sha256(copy.read_bytes()).hexdigest() if is_file else None
        same = "unchanged" if sha256 == source.get("sha256") else "CHANGED since it was stored"
        say(console, f"{copy}: {same if is_file else 'missing'}; it was not executed")
    if files := imported_files(run):
        for name, file in files.items():
            say(console, f"imported, {name}: {file.num_parameters:,} parameters in {file.path}")
        for name, value in flat(files["ema"].source).items():
            if value not in (None, []):
                say(console, f"from {name}: {value if isinstance(value, str) else shown(value)}")
        return
    steps = sorted(step_folders(run.checkpoints))
    say(console, f"checkpoints of steps {', '.join(map(str, steps)) or 'none'}")


def _own_members(stored: dict[str, Any], prefix: str = "") -> list[str]:
    """Members whose class the run's own config file defines."""
    names: list[str] = []
    for name, value in stored.items():
        if isinstance(value, dict):
            if str(value.get("class")).startswith(f"{OWN}:"):
                names.append(prefix + name)
            names += _own_members(value, f"{prefix}{name}.")
    return names
