"""The most expensive kernels of a run, from the trace that `jax.profiler` writes.

A trace is a list of events (Chrome's trace format, gzipped JSON); those that an instruction of a
compiled program has caused carry its name, `hlo_op`. Of a GPU they are kernels on its streams, of a
TPU the lines "XLA Ops", of a CPU what its threads execute. An instruction's `op_name` in the
program's text says which operation of JAX it is of.

A CUDA graph that replays many kernels is one instruction, `command_buffer`. Its kernels are told
apart by their own names; one that XLA has generated is named after its instruction.
"""

import gzip
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

__all__ = ["Kernel", "expensive", "read", "trace"]


class Kernel(NamedTuple):
    """All launches of one instruction in a trace; in a CUDA graph, of one kernel."""

    instruction: str
    name: str
    """Of the longest launch: that of the kernel on a GPU, that of the instruction elsewhere."""
    operation: str
    """Of JAX, by the program's text; empty where it does not say."""
    launches: int
    seconds: float
    share: float
    """Of the time of all instructions in the trace."""


def trace(run: Callable[[], Any], hlo: str) -> list[Kernel]:
    """The kernels of one run, the most expensive first; empty where the profiler sees none.

    Args:
        run: what is traced; it was run before.
        hlo: the text of its program.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        return expensive(read(Path(folder)), hlo)


def read(folder: Path) -> list[dict[str, Any]]:
    """All events under `folder`."""
    events: list[dict[str, Any]] = []
    for path in sorted(folder.rglob("*.trace.json.gz")):
        with gzip.open(path) as file:
            events += json.load(file)["traceEvents"]
    return events


def expensive(events: list[dict[str, Any]], hlo: str) -> list[Kernel]:
    """The instructions of `events` by the time that they took."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for event in _launches(events):
        groups.setdefault(_instruction(event), []).append(event)
    total = sum(event["dur"] for group in groups.values() for event in group)
    operations = dict(_OPERATION.findall(hlo))
    operations |= {name.replace(".", "_"): operation for name, operation in operations.items()}
    kernels = []
    for instruction, group in groups.items():
        microseconds = sum(event["dur"] for event in group)
        longest = max(group, key=lambda event: event["dur"])
        kernels.append(
            Kernel(
                instruction,
                longest["name"],
                operations.get(instruction, ""),
                len(group),
                1e-6 * microseconds,
                microseconds / total,
            )
        )
    return sorted(kernels, key=lambda kernel: -kernel.seconds)


_OPERATION = re.compile(r"%([\w.\-]+) = [^\n]*?op_name=\"([^\"]*)\"")


def _instruction(event: dict[str, Any]) -> str:
    instruction = str(event["args"]["hlo_op"])
    return event["name"] if instruction.startswith("command_buffer") else instruction


def _launches(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each launch once: a device's kernels are in the trace by streams and once more by operations.

    What loops and calls took is that of what is inside, which is there, too.
    """
    processes, threads = (
        {
            (event["pid"], event.get("tid") if kind == "thread_name" else None): event["args"][
                "name"
            ]
            for event in events
            if event.get("ph") == "M" and event.get("name") == kind
        }
        for kind in ("process_name", "thread_name")
    )
    launches = []
    for event in events:
        if event.get("ph") != "X" or "hlo_op" not in event.get("args", {}):
            continue
        if re.match(r"(while|call|conditional)\b", event["args"]["hlo_op"]):
            continue
        process = processes.get((event["pid"], None), "")
        thread = threads.get((event["pid"], event.get("tid")), "")
        if "/device:" in process and not re.match(r"Stream|XLA Ops", thread):
            continue
        launches.append(event | {"line": thread})
    on_streams = [event for event in launches if event["line"].startswith("Stream")]
    return on_streams or launches
