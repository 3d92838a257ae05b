"""`ddpm-jax plan CONFIG --topology v5e:4x4 [--topology ...] [overrides]`."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from ddpm_jax.cli.arguments import EXECUTED, parse_config, parse_options
from ddpm_jax.cli.plan_tables import collectives_table, plans_table, sentences
from ddpm_jax.config import to_json, validate
from ddpm_jax.errors import UserError
from ddpm_jax.files import whole_file
from ddpm_jax.plan import parse, plans
from ddpm_jax.terminal import say

__all__ = ["run"]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Predicts memory, traffic and the least step time of a config on machines you do not have.

    The config comes first, as for train, and its fields can be overridden:
    ddpm-jax plan cifar10 --topology v5e:4x4 --train.batch-size 2048
    """

    topology: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Machines to plan for: v5e:4x4, 2xv5e:16x16 for two slices, v5p:4x4x8, h100:8. Give the option
    again for more machines."""
    slices: int = 1
    """Number of slices of each topology."""
    json: Path | None = None
    """File to which all numbers are also written."""
    largest_batch: bool = False
    """Also look for the largest batch that fits, which takes some more minutes."""
    thorough: bool = False
    """Let the compiler optimize as for a run, which takes ten minutes in place of one. Without it
    the memory of activations tends to be overestimated, and parameters are sent before they are
    rounded to bfloat16."""
    advise: bool = True
    """If a step does not fit into memory, look for changes that make it fit, which takes some more
    minutes."""


def run(arguments: Sequence[str], console: Console) -> None:
    """Compiles, and prints tables; needs no dataset and no accelerator."""
    options, rest = parse_options(
        Arguments,
        "ddpm-jax plan CONFIG",
        arguments,
        description=f"{Arguments.__doc__}\n\n{EXECUTED}",
        return_unknown_args=True,
    )
    config = parse_config("plan", rest)
    config = validate(config)
    if not options.topology:
        raise UserError("--topology is missing; name a machine, such as --topology v5e:4x4")
    topologies = [parse(name, options.slices) for name in options.topology]
    if options.json is not None and not options.json.parent.is_dir():
        raise UserError(
            f"--json is {str(options.json)!r}; there is no folder {options.json.parent}"
        )
    results = plans(
        [(config, topology) for topology in topologies],
        advise=options.advise,
        largest_batch=options.largest_batch,
        thorough=options.thorough,
        say=lambda what: say(console, what),
    )
    if options.json is not None:
        written = {"config": to_json(config), "thorough": options.thorough, "plans": results}
        with whole_file(options.json) as file:
            file.write((json.dumps(written, indent=1, allow_nan=False) + "\n").encode())
    console.print(plans_table(results))
    for plan in results:
        if plan["collectives"]:
            console.print(collectives_table(plan))
    for sentence in sentences(results):
        say(console, sentence)
