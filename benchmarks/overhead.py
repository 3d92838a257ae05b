"""Measures the cost of the parallel forms: one train step on meshes of simulated devices.

Simulated devices and processes share the cores of this machine, so that none of them is faster than
one device. The extra time is the cost of the parallel form, and of work in smaller pieces.
"""

import contextlib
import dataclasses
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks import columns
from benchmarks.columns import duration, number
from benchmarks.machinery import STEPS
from benchmarks.results import Row, find, overlap
from benchmarks.settings import Say, unet_of
from ddpm_jax.config import Config, Mesh, find_member, to_message
from ddpm_jax.plan.subprocesses import start

__all__ = ["COLUMNS", "FormName", "Place", "ask", "measured", "meshes", "notes", "places"]

FormName = Literal["jit", "shard_map", "pmap"]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where steps run."""

    processes: int
    devices: int
    """Of each process."""

    def __str__(self) -> str:
        if self.processes > 1:
            return f"{self.processes} processes"
        return f"{self.devices} devices" if self.devices > 1 else "1 device"


def places(devices: int, processes: Sequence[int]) -> list[Place]:
    """A single device, `devices` of one process, and real processes with one device each."""
    return list(
        dict.fromkeys([Place(1, 1), Place(1, devices), *(Place(count, 1) for count in processes)])
    )


def measured(
    config: Config,
    place: Place,
    forms: Sequence[FormName],
    *,
    repeats: int,
    seconds: float,
    say: Say,
) -> list[Row]:
    """The step without a mesh and in each form, in processes of its own; ctrl-C ends them.

    Raises:
        UserError: a config that cannot work there.
    """
    channels = unet_of(config).channels
    say(f"{place}, {channels} channels")
    results = ask(
        {
            "configs": [
                to_message(dataclasses.replace(config, mesh=mesh))
                for mesh in meshes(config, place, forms)
            ],
            "devices": place.devices,
            "count": place.processes,
            "repeats": repeats,
            "seconds": seconds,
        }
    )
    rows = []
    for one in results:
        case = {
            "on": str(place),
            "form": one.pop("form"),
            "mesh of": one.pop("mesh"),
            "channels": channels,
        }
        rows.append(Row(case, one.pop("seconds"), one.pop("compile_seconds"), one))
    alone = rows[0]
    for row in rows:
        row.numbers["over_one_device"] = row.median / alone.median
    return rows


def meshes(config: Config, place: Place, forms: Sequence[FormName]) -> list[Mesh]:
    """All devices along "data" in each form; of 4, 6, ... in one process, also 2 x the rest."""
    size = place.devices * place.processes
    # pmap runs in one process, and keeps all parameters on each device.
    of_many = [form for form in forms if form != "pmap"]
    whole = [
        _mesh(config, form, data=size) for form in (forms if place.processes == 1 else of_many)
    ]
    if place.devices < 4 or place.devices % 2:
        return whole
    return whole + [_mesh(config, form, data=2, fsdp=size // 2) for form in of_many]


def _mesh(config: Config, form: FormName, *, data: int, fsdp: int = 1) -> Mesh:
    kind: Any = find_member(Mesh, form, "--forms")
    return kind(data=data, fsdp=fsdp, reduction=config.mesh.reduction)


def ask(question: dict[str, Any]) -> list[dict[str, Any]]:
    """The answer of `benchmarks.machinery`, from as many processes as are to share the work."""
    count = question["count"]
    coordinator = f"127.0.0.1:{_free_port()}" if count > 1 else None
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(
                start(
                    "benchmarks.machinery",
                    question | {"coordinator": coordinator, "index": index},
                    _environment(),
                )
            )
            for index in range(count)
        ]
        return children[0].answer()


def _environment() -> dict[str, str]:
    # XLA's flags can count devices, too.
    inner = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    home = str(Path(__file__).parents[1])
    inner["PYTHONPATH"] = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    return inner | {"JAX_PLATFORMS": "cpu"}


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


COLUMNS: columns.Columns = {
    "on": columns.case("on"),
    "form": columns.case("form"),
    "mesh": columns.case("mesh of"),
    "channels": columns.case("channels"),
    "split": columns.figure("split"),
    "time": columns.time,
    "quartiles": columns.quartiles,
    "of one device": columns.figure("over_one_device"),
    f"differs after {STEPS}": columns.figure("difference"),
    "compile": columns.compiling,
}
"""Headers of the table, and what stands under them."""


def notes(rows: list[Row]) -> list[str]:
    """What the numbers say."""
    sentences = []
    for channels in dict.fromkeys(row.case["channels"] for row in rows):
        for where in dict.fromkeys(row.case["on"] for row in rows):
            alone, *meshes = find(rows, channels=channels, on=where)
            takes = [
                f"{row.case['form']} on {row.case['mesh of']}"
                f" {number(row.numbers['over_one_device'])}"
                + (" (within the spread)" if overlap(row, alone) else "")
                for row in meshes
            ]
            sentences.append(
                f"{where}, {channels} channels: of the {duration(alone.median)} that the whole"
                f" batch takes on one of them without a mesh, {'; '.join(takes)}."
            )
    far = max(rows, key=lambda row: row.numbers["difference"])
    sentences.append(
        f"After {STEPS} steps, no parameter differs by more than"
        f" {number(far.numbers['difference'])} from that of one device, which has moved by up to"
        f" {number(far.numbers['moved'])}."
    )
    return sentences
