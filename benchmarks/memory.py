"""Decides before a program runs whether it fits into the memory of its device."""

from pathlib import Path

import jax

from ddpm_jax.errors import UserError

__all__ = ["check_fits", "free_bytes", "free_host_bytes", "gigabytes"]

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def check_fits(what: str, need: float, *, then: str) -> None:
    """Raises UserError if `need` bytes are more than the device has free.

    Where a system or a device does not report its memory, nothing is checked.

    Args:
        what: the program or the arrays, with their size.
        need: bytes.
        then: what would do.
    """
    free = free_bytes()
    if free is not None and need > free:
        raise UserError(
            f"{what} needs {gigabytes(need)} of memory and {gigabytes(free)} are free; {then}"
        )


def free_bytes() -> int | None:
    """Of JAX's first device; None where nobody says."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return free_host_bytes()
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))


def free_host_bytes() -> int | None:
    """What Linux calls available, or what a container's limit leaves, if that is less."""
    try:
        fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    left = _left_in_container()
    return free if left is None else min(free, left)


def gigabytes(count: float) -> str:
    """Three significant digits, or whole numbers of GB."""
    size = count / 1e9
    return f"{size:,.0f} GB" if size >= 100.0 else f"{size:.3g} GB"


def _left_in_container() -> int | None:
    """Of the limit of a control group (version 2), files that can be dropped not counted."""
    try:
        limit, used = (
            (_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current")
        )
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
        droppable = int(dict(line.split() for line in lines).get("inactive_file", 0))
        return None if limit == "max" else int(limit) - int(used) + droppable
    except (OSError, ValueError):
        return None
