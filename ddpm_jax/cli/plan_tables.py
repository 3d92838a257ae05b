"""A plan as tables and sentences."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table

__all__ = ["collectives_table", "plans_table", "sentences"]

Plan = dict[str, Any]


def plans_table(plans: Sequence[Plan]) -> Table:
    """Topologies side by side."""
    table = Table(title="one train step; bytes, FLOPs and traffic are those of one device")
    table.add_column("")
    for plan in plans:
        table.add_column(plan["topology"], justify="right")
    for heading, cell, last in _ROWS:
        cells = [cell(plan) for plan in plans]
        if any(cells):
            table.add_row(heading, *cells, end_section=last)
    return table


def collectives_table(plan: Plan) -> Table:
    """The collectives of one step: groups of devices, and what each device sends."""
    title = f"{plan['topology']}: collectives of one step"
    table = Table(title=title, collapse_padding=True, pad_edge=False)
    for heading in ("kind", "dtype", "axis"):
        table.add_column(heading, no_wrap=True)
    leaves = ["leaves"] if plan["slices"] > 1 else []
    for heading in ("of", "times", "size", "sent", *leaves):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in plan["collectives"]:
        table.add_row(
            row["kind"],
            row["dtype"],
            row["axis"],
            str(row["devices"]),
            str(row["times"]) + ("" if row["counted"] else "+"),
            size(row["bytes"]),
            size(row["link_bytes"]),
            *([size(row["network_bytes"]) if row["slices"] > 1 else ""] if leaves else []),
        )
    return table


def sentences(plans: Sequence[Plan]) -> list[str]:
    """The results of the plans in sentences."""
    lines = []
    for plan in plans:
        name, over = plan["topology"], plan["needed_bytes"] - plan["usable_bytes"]
        if plan["fits"]:
            lines.append(f"{name}: fits, with {size(-over)} to spare on each device")
        elif plan["needed_bytes"]:
            lines.append(f"{name}: does not fit; {size(over)} are missing on each device")
        else:
            lines.append(f"{name}: does not fit; the compiler does not say by how much")
        if plan.get("would_fit"):
            for result in plan["would_fit"]:
                lines.append(f"  it fits with {result['change']}: {size(result['needed_bytes'])}")
        elif "would_fit" in plan:
            lines.append("  no change of remat, fsdp or accumulate that was tried makes it fit")
        if "largest_batch" in plan:
            lines.append("  " + _largest(plan["largest_batch"]))
    if any(plan["fits"] for plan in plans):
        lines.append(
            "The times are lower bounds from published peak rates and the compiler's counts; real"
            " steps are slower"
        )
    return lines


def size(count: int | float) -> str:
    """A number of bytes with a unit."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if abs(count) >= 2**power:
            return f"{count / 2**power:.3g} {unit}"
    return f"{count:.0f} B"


def _largest(result: dict[str, int | None] | None) -> str:
    if result is None:
        return "no batch fits, not even one image on each device"
    less = f"; {result['fails']:,} does not" if result["fails"] else ""
    return f"the largest batch that fits, of those tried, is {result['fits']:,}{less}"


def _seconds(value: int | float) -> str:
    for unit, least in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= least:
            return f"{value / least:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns" if value else "0"


def _work(count: int | float) -> str:
    for unit, least in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if count >= least:
            return f"{count / least:.3g} {unit}"
    return f"{count:.3g}"


def _if_known(key: str, cell: Callable[[Any], str]) -> Callable[[Plan], str]:
    return lambda plan: "" if plan[key] is None else cell(plan[key])


_Row = tuple[str, Callable[[Plan], str], bool]
_ROWS: tuple[_Row, ...] = (
    ("chips", lambda plan: f"{plan['chips']:,}", False),
    ("mesh", lambda plan: " x ".join(f"{k} {v}" for k, v in plan["mesh"].items()), False),
    ("global batch", lambda plan: f"{plan['batch']:,}", True),
    ("arguments", _if_known("memory", lambda memory: size(memory["arguments"])), False),
    ("outputs", _if_known("memory", lambda memory: size(memory["outputs"])), False),
    ("of which reused", _if_known("memory", lambda memory: size(memory["aliased"])), False),
    ("temporaries", _if_known("memory", lambda memory: size(memory["temporaries"])), False),
    ("peak", lambda plan: size(plan["needed_bytes"]) if plan["needed_bytes"] else "?", False),
    ("usable", lambda plan: size(plan["usable_bytes"]), False),
    ("fits", lambda plan: "yes" if plan["fits"] else "no", True),
    ("FLOPs", lambda plan: _work(plan["flops"]) if plan["flops"] else "", False),
    (
        "bytes accessed",
        lambda plan: (
            ("" if plan["bytes_counted"] else ">= ") + size(plan["bytes_accessed"])
            if plan["flops"]
            else ""
        ),
        False,
    ),
    (
        "FLOPs per byte",
        lambda plan: f"{plan['intensity']:.3g}" if plan["flops"] else "",
        True,
    ),
    ("compute", _if_known("roofline", lambda line: _seconds(line["compute"])), False),
    ("memory", _if_known("roofline", lambda line: _seconds(line["memory"])), False),
    ("links", _if_known("roofline", lambda line: _seconds(line["links"])), False),
    (
        "network",
        lambda plan: (
            _seconds(plan["roofline"]["network"])
            if plan["slices"] > 1 and plan["roofline"] is not None
            else ""
        ),
        False,
    ),
    ("step, at least", _if_known("roofline", lambda line: _seconds(line["seconds"])), False),
    ("limited by", _if_known("roofline", lambda line: line["limit"]), False),
    (
        "images/s, at most",
        lambda plan: (
            f"{plan['batch'] / plan['roofline']['seconds']:,.0f}"
            if plan["roofline"] is not None
            else ""
        ),
        False,
    ),
    (
        "model FLOPs utilization, at most",
        lambda plan: f"{plan['utilization']:.1%}" if plan["roofline"] is not None else "",
        True,
    ),
    ("compiled in", lambda plan: _seconds(plan["compile_seconds"]), False),
)
