"""What a train step needs of each device as the mesh grows, and what the machinery for it costs.

The part "compiled" has the same images on each device, and is read from programs that XLA's TPU
compiler makes ahead of time, for machines that are not there. On a "data" mesh every device holds
all parameters, and what it sends of the gradients is the same on any number of devices. On an
"fsdp" mesh the parameters, the optimizer's state and the averages are shared out, so a device holds
less of them, and sends parameters as well. Nothing of it is run.

The part "timed" runs a small step, and a larger one in the first form alone, with the same batch in
all: on a mesh of one device, on devices that are simulated, and in several processes of this
machine, each beside one device without a mesh, by turns. All of them share the same cores, so that
what takes longer is the machinery itself.

What is not measured: the time of a step on many devices that are real, and of placing a batch.
"""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from benchmarks import columns, overhead
from benchmarks.overhead import FormName
from benchmarks.results import Row, find
from benchmarks.settings import Common, Say, check_values, unet_of
from ddpm_jax.config import Config, Simple, Uniform, load, validate
from ddpm_jax.errors import MissingExtra, UserError
from ddpm_jax.plan import Topology, parse, plans
from ddpm_jax.plan.topologies import check_compiler

__all__ = ["PACKAGES", "Settings", "configs_of", "notes", "run", "tables", "timed_config"]

PACKAGES: tuple[str, ...] = ("libtpu",)
MESHES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class Settings(Common):
    """What `python -m benchmarks scaling` takes."""

    parts: tuple[Literal["compiled", "timed"], ...] = ("compiled", "timed")
    """See above. The first needs the extra 'plan'; what cannot be compiled for is left out."""
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
    timed_config: Path = Path("configs/digits.py")
    """Of what is timed: images and chain; its network is a small one, too, of one level."""
    timed_channels: tuple[int, ...] = (16, 32)
    """Of the networks that are timed. All but the first take the first of the forms alone. With
    fewer channels than 16 no parameter is large enough to be split over "fsdp"."""
    timed_batch: int = 32
    """Images in a step that is timed, over all devices."""
    forms: tuple[FormName, ...] = ("jit", "shard_map", "pmap")
    """Of the steps that are timed."""
    devices: int = 8
    """That are simulated."""
    processes: tuple[int, ...] = (1, 2, 4)
    """On this machine, with one device each."""


def run(settings: Settings, say: Say) -> Iterator[Row]:
    """Compiles for every topology, twice, and times; yields rows as they are there.

    Raises:
        UserError: settings that cannot work, or nothing but what there is no compiler for.
    """
    distinct = ("parts", "topologies", "timed_channels", "forms", "processes")
    check_values(settings, distinct=distinct)
    topologies = [parse(name) for name in settings.topologies]
    if "timed" in settings.parts:
        _check_timed(settings)
    if "compiled" in settings.parts:
        missing = _missing(topologies)
        if missing and "timed" in settings.parts:
            say(missing)
            yield Row({"part": "compiled"}, numbers={"unavailable": missing})
        else:
            yield from _compiled(settings, topologies, say)
    if "timed" in settings.parts:
        yield from _timed(settings, say)


def _missing(topologies: list[Topology]) -> str | None:
    """Which compiler is not installed, if one is not."""
    try:
        for topology in topologies:
            check_compiler(topology)
    except MissingExtra as error:
        return str(error)
    return None


def _compiled(settings: Settings, topologies: list[Topology], say: Say) -> list[Row]:
    requests = [
        (config, topology)
        for topology in topologies
        for config in configs_of(settings, topology).values()
    ]
    results = plans(requests, advise=False, say=say)
    cases = [(mesh, topology) for topology in topologies for mesh in MESHES]
    return [_row(mesh, plan) for (mesh, _), plan in zip(cases, results, strict=True)]


def _check_timed(settings: Settings) -> None:
    """Raises UserError for what would stop it after some minutes."""
    for channels in settings.timed_channels:
        validate(timed_config(settings, channels))
    for count in (settings.devices, *settings.processes):
        if settings.timed_batch % count:
            raise UserError(
                f"--timed-batch is {settings.timed_batch}; {count} devices cannot share it alike"
            )


def _timed(settings: Settings, say: Say) -> Iterator[Row]:
    for channels in settings.timed_channels:
        config = timed_config(settings, channels)
        forms = settings.forms if channels == settings.timed_channels[0] else settings.forms[:1]
        for place in overhead.places(settings.devices, settings.processes):
            yield from overhead.measured(
                config, place, forms, repeats=settings.repeats, seconds=settings.seconds, say=say
            )


def timed_config(settings: Settings, channels: int) -> Config:
    """The step that is timed: with the simple loss, which a compiler is done with soonest."""
    config = load(settings.timed_config)
    return dataclasses.replace(
        config,
        network=dataclasses.replace(
            unet_of(config),
            channels=channels,
            multipliers=(1,),
            num_blocks=1,
            attention_resolutions=(),
            # With a channel in each group the norm undoes the bias before it, whose gradient is
            # then rounding alone; and Adam makes a step of that.
            norm_groups=math.gcd(4, channels // 2),
        ),
        objective=Simple(),
        times=Uniform(),
        train=dataclasses.replace(config.train, batch_size=settings.timed_batch),
        seed=settings.seed,
    )


def configs_of(settings: Settings, topology: Topology) -> dict[str, Config]:
    """The config on each of the two meshes."""
    config, devices = load(settings.config), topology.devices
    shared = min(settings.fsdp, devices)
    if devices % shared:
        raise UserError(f"--fsdp is {settings.fsdp}; it has to divide the {devices} of {topology}")
    network = dataclasses.replace(
        unet_of(config),
        channels=settings.channels,
        multipliers=(1, 2),
        num_blocks=1,
        attention_resolutions=(),
        dtype=settings.dtype,
    )
    train = dataclasses.replace(config.train, batch_size=settings.batch * devices)
    smaller = dataclasses.replace(config, network=network, train=train)
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
_COMPILED: columns.Columns = {
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


def tables(rows: list[Row]) -> list[tuple[list[Row], columns.Columns]]:
    """One for each part."""
    compiled, timed = _parts(rows)
    parts = [(compiled, _COMPILED), (timed, overhead.COLUMNS)]
    return [(part, headers) for part, headers in parts if part]


def notes(rows: list[Row]) -> list[str]:
    """What the numbers say."""
    compiled, timed = _parts(rows)
    missing = [row.numbers["unavailable"] for row in rows if "unavailable" in row.numbers]
    sentences = [f"Nothing was compiled for a mesh of TPUs or GPUs: {why}." for why in missing]
    sentences += _of_compiled(compiled) if compiled else []
    return sentences + (overhead.notes(timed) if timed else [])


def _parts(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """What was compiled and what was timed."""
    return [row for row in rows if "topology" in row.case], [row for row in rows if row.seconds]


def _of_compiled(rows: list[Row]) -> list[str]:
    sentences = [
        "Bytes are those of one device, as the compiler states them; nothing was run for them."
    ]
    for mesh in MESHES:
        points = sorted(find(rows, mesh=mesh), key=lambda row: row.numbers["devices"])
        if len(points) < 2:
            continue
        few, many = points[0].numbers, points[-1].numbers
        changes = [
            f"{what} {columns.number(many[name] / few[name])} times"
            for what, name in (
                ("state and batch are", "argument_bytes"),
                ("the peak is", "peak_bytes"),
                ("what is sent is", "sent_bytes"),
            )
            if few[name] and many[name]
        ]
        sentences.append(
            f"{mesh}: from {few['devices']} to {many['devices']} devices "
            + ", ".join(changes)
            + " as much."
        )
    return sentences
