"""`ddpm-jax inspect CONFIG [overrides]`."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from ddpm_jax.cli.arguments import parse_config
from ddpm_jax.config import Config, validate
from ddpm_jax.experiment import check_image_size, image_shape_of, make_model, make_process
from ddpm_jax.models import layer_table
from ddpm_jax.terminal import cell, say

__all__ = ["run"]


def run(arguments: Sequence[str], console: Console) -> None:
    """Prints the forward process and the network as tables; needs no dataset."""
    config = parse_config("inspect", arguments)
    config = validate(config)
    shape = image_shape_of(config)
    check_image_size(config, shape)
    if config.process.name == "equal_snr":
        say(console, "process: equal_snr, with a spectrum that is measured when a run begins")
    else:
        console.print(_process_table(config, shape))
    layers = layer_table(make_model(config), shape)
    table = Table(title=cell(f"{config.data.name}: one {'x'.join(map(str, shape))} image"))
    table.add_column("layer")
    table.add_column("kind")
    for heading in ("output", "parameters", "FLOPs"):
        table.add_column(heading, justify="right")
    for layer in layers:
        table.add_row(
            cell(layer.name),
            cell(layer.kind),
            "x".join(map(str, layer.output)),
            f"{layer.parameters:,}",
            f"{layer.flops:,}",
            end_section=layer is layers[-2],
        )
    console.print(table)


def _process_table(config: Config, shape: tuple[int, int, int]) -> Table:
    """How fast the signal goes, in the modes that keep it longest and lose it first."""
    process = make_process(config, shape)
    times = np.unique(np.linspace(0, process.num_steps - 1, 5).round().astype(np.int32))
    log_snr = np.log(np.asarray(process.snr(jnp.asarray(times))).reshape(len(times), -1))
    modes = f"{log_snr.shape[1]} modes" if log_snr.shape[1] > 1 else "one mode"
    table = Table(title=cell(f"the process: {config.process.name}, {modes}"))
    for heading in ("t", "least log SNR", "greatest"):
        table.add_column(heading, justify="right")
    for t, least, greatest in zip(times, log_snr.min(axis=1), log_snr.max(axis=1), strict=True):
        table.add_row(str(t), f"{least:.2f}", f"{greatest:.2f}")
    return table
