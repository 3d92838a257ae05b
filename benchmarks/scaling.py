"""What a train step needs of each device as the mesh grows, at the same images on each.

Read from programs that XLA's TPU compiler makes ahead of time, for machines that are not there. On
a "data" mesh every device holds all parameters, and what it sends of the gradients is the same on
any number of devices. On an "fsdp" mesh the parameters, the optimizer's state and the averages are
shared out, so a device holds less of them, and sends parameters as well.

What is not measured: time. Nothing is run, so the repeats and the seconds of a row do nothing here.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from benchmarks import columns
from benchmarks.results import Row, find
from benchmarks.settings import Common, Say, check_values
from ddpm_jax.config import Config, load
from ddpm_jax.errors import UserError
from ddpm_jax.plan import Topology, parse, plans

__all__ = ["COLUMNS", "PACKAGES", "Settings", "configs_of", "notes", "run"]

PACKAGES: tuple[str, ...] = ("libtpu",)
MESHES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class Settings(Common):
    """What `python -m benchmarks scaling` takes."""

    topologies: tuple[str, ...] = ("v5p:2x2x2", "v5p:4x4x4", "v5p:4x8x8", "v5p:8x8x16")
    """Machines, as `ddpm-jax plan` names them."""
    config: Path = Path("configs/cifar10.py")
    """Images and chain; no dataset has to be there."""
    channels: int = 64
    """Of the network, which is a small one: one block on each of two levels, without attention."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of its computation."""
    batch: int = 8
    """Images on each device."""
    fsdp: int = 64
    """Devices that share parameters, at most; all, if there are fewer. More than the network has
    channels cannot."""


def run(settings: Settings, say: Say) -> list[Row]:
    """Compiles for every topology, twice.

    Raises:
        UserError: settings that cannot work, or no compiler.
    """
    check_values(settings, distinct=("topologies",))
    topologies = [parse(name) for name in settings.topologies]
    asked = [
        (config, topology)
        for topology in topologies
        for config in configs_of(settings, topology).values()
    ]
    found = plans(asked, advise=False, say=say)
    cases = [(mesh, topology) for topology in topologies for mesh in MESHES]
    return [_row(mesh, plan) for (mesh, _), plan in zip(cases, found, strict=True)]


def configs_of(settings: Settings, topology: Topology) -> dict[str, Config]:
    """The config on each of the two meshes."""
    config, devices = load(settings.config), topology.devices
    shared = min(settings.fsdp, devices)
    if devices % shared:
        raise UserError(f"--fsdp is {settings.fsdp}; it has to divide the {devices} of {topology}")
    model = dataclasses.replace(
        config.model,
        channels=settings.channels,
        multipliers=(1, 2),
        num_blocks=1,
        attention_resolutions=(),
        dtype=settings.dtype,
    )
    train = dataclasses.replace(config.train, batch_size=settings.batch * devices)
    smaller = dataclasses.replace(config, model=model, train=train)
    return {
        mesh: dataclasses.replace(
            smaller, mesh=dataclasses.replace(config.mesh, data=devices // fsdp, fsdp=fsdp)
        )
        for mesh, fsdp in (("data", 1), ("fsdp", shared))
    }


def _row(mesh: str, plan: dict[str, Any]) -> Row:
    memory, rows = plan["memory"] or {}, plan["collectives"]
    return Row(
        {"mesh": mesh, "topology": plan["topology"]},
        compile_seconds=plan["compile_seconds"],
        numbers={
            "devices": plan["devices"],
            "fsdp": plan["mesh"]["fsdp"],
            "images": plan["batch"],
            "peak_bytes": plan["needed_bytes"],
            "argument_bytes": memory.get("arguments"),
            "temporary_bytes": memory.get("temporaries"),
            "collective_bytes": sum(row["bytes"] for row in rows),
            "sent_bytes": sum(row["link_bytes"] + row["network_bytes"] for row in rows),
            "collectives": rows,
        },
    )


MIB = 2.0**20
COLUMNS: columns.Columns = {
    "mesh": columns.case("mesh"),
    "topology": columns.case("topology"),
    "devices": columns.figure("devices"),
    "fsdp": columns.figure("fsdp"),
    "images": columns.figure("images"),
    "state and batch MiB": columns.figure("argument_bytes", unit=MIB),
    "peak MiB": columns.figure("peak_bytes", unit=MIB),
    "collectives MiB": columns.figure("collective_bytes", unit=MIB),
    "sent MiB": columns.figure("sent_bytes", unit=MIB),
    "compile": columns.compiling,
}
"""Headers of the table, and what stands under them."""


def notes(rows: list[Row]) -> list[str]:
    """What the numbers say."""
    said = ["Bytes are those of one device, as the compiler states them; nothing was run."]
    for mesh in MESHES:
        found = sorted(find(rows, mesh=mesh), key=lambda row: row.numbers["devices"])
        if len(found) < 2:
            continue
        few, many = found[0].numbers, found[-1].numbers
        changes = [
            f"{what} {columns.number(many[name] / few[name])} times"
            for what, name in (
                ("state and batch are", "argument_bytes"),
                ("the peak is", "peak_bytes"),
                ("what is sent is", "sent_bytes"),
            )
            if few[name] and many[name]
        ]
        said.append(
            f"{mesh}: from {few['devices']} to {many['devices']} devices "
            + ", ".join(changes)
            + " as much."
        )
    return said
