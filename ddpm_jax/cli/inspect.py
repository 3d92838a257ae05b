"""`ddpm-jax inspect CONFIG [overrides]`."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ddpm_jax.cli.arguments import parse_config
from ddpm_jax.config import validate
from ddpm_jax.data import image_shape
from ddpm_jax.experiment import check_image_size, make_model
from ddpm_jax.models import layer_table

__all__ = ["run"]


def run(arguments: Sequence[str], console: Console) -> None:
    """Prints the network as a table; needs no dataset and computes nothing."""
    config = parse_config("inspect", arguments)
    validate(config)
    shape = image_shape(config.data.name, config.data.dir)
    check_image_size(config, shape)
    layers = layer_table(make_model(config), shape)
    table = Table(title=f"{config.data.name}: one {'x'.join(map(str, shape))} image")
    table.add_column("layer")
    table.add_column("kind")
    for heading in ("output", "parameters", "FLOPs"):
        table.add_column(heading, justify="right")
    for layer in layers:
        table.add_row(
            layer.name,
            layer.kind,
            "x".join(map(str, layer.output)),
            f"{layer.parameters:,}",
            f"{layer.flops:,}",
            end_section=layer is layers[-2],
        )
    console.print(table)
