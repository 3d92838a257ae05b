"""Names of machines, such as v5e:16x16, and their devices to compile for, without the hardware.

A TPU compiler looks for a TPU and logs a lot unless environment variables are set before JAX is
imported. Therefore a separate process, `ddpm_jax.plan.worker`, makes the devices; it starts with
the variables of `environment`.
"""

import difflib
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ddpm_jax.errors import MissingExtra, UserError, is_installed
from ddpm_jax.plan.chips import CHIPS, Chip

__all__ = ["Topology", "TopologyError", "check_compiler", "devices", "environment", "parse"]


class TopologyError(UserError):
    """No machine has that name."""


class Topology(NamedTuple):
    """Chips of one kind and how they are connected."""

    chip: Chip
    """The kind of chip."""
    shape: tuple[int, ...]
    """Shape of one slice of TPUs; for GPUs, the number of GPUs of one host."""
    slices: int
    """Number of slices; for GPUs, of hosts."""

    def __str__(self) -> str:
        several = f"{self.slices}x" if self.slices > 1 else ""
        return f"{several}{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """Number of chips in all slices."""
        return self.slices * math.prod(self.shape)

    @property
    def devices(self) -> int:
        """Number of devices that JAX sees."""
        return self.chips * self.chip.devices

    @property
    def neighbours(self) -> int:
        """Number of devices in one slice, or in one host of GPUs."""
        return self.devices // self.slices


def parse(name: str, slices: int = 1) -> Topology:
    """The topology of a name.

    Args:
        name: such as v5e:4x4, 2xv5e:4x4 for two slices of it, or h100:8 for GPUs.
        slices: number of slices, if the name does not give it.

    Returns:
        The topology.

    Raises:
        TopologyError: no topology has this name. The sentence gives a name that works.

    Example:
        >>> from ddpm_jax.plan import parse
        >>> parse("2xv5e:4x4").devices
        32
        >>> str(parse("h100:16"))
        '2xh100:8'
    """
    match = re.fullmatch(r"(?:(\d+)x)?([a-z0-9]+):(\d+(?:x\d+)*)", name)
    if match is None or match[2] not in CHIPS:
        raise TopologyError(f"--topology is {name!r}; {_right_names(name)}")
    prefix, chip = int(match[1] or 1), CHIPS[match[2]]
    shape = tuple(map(int, match[3].split("x")))
    if slices < 1 or prefix < 1 or min(shape) < 1:
        raise TopologyError(f"--topology is {name!r}, --slices {slices}; counts are 1 or more")
    if prefix > 1 and slices > 1:
        raise TopologyError(
            f"--topology is {name!r} and --slices {slices}; give the number of slices once"
        )
    count = max(prefix, slices)
    if chip.dimensions == 0:
        return _hosts(name, chip, shape, count)
    if len(shape) != chip.dimensions:
        sides = "x".join(["4"] * chip.dimensions)
        raise TopologyError(
            f"--topology is {name!r}; a slice of {chip.name} has {chip.dimensions} dimensions, as"
            f" in {chip.name}:{sides}"
        )
    if math.prod(shape) > chip.largest_slice:
        raise TopologyError(
            f"--topology is {name!r}; a slice of {chip.name} has at most {chip.largest_slice:,}"
            " chips; use --slices for several slices"
        )
    return Topology(chip, shape, count)


def environment(
    topology: Topology, outer: Mapping[str, str], *, thorough: bool = False
) -> dict[str, str]:
    """The environment variables of a process that compiles for `topology`.

    Variables that change how a program is compiled are left out, so that plans are the same
    everywhere.

    Args:
        topology: to compile for.
        outer: the environment of this process.
        thorough: optimize as for a run, which takes ten minutes in place of one.
    """
    prefixes = ("JAX_", "XLA_", "TPU_", "LIBTPU_", "CLOUD_TPU_", "MEGASCALE_")
    inner = {name: value for name, value in outer.items() if not name.startswith(prefixes)}
    # This package first, then the folders of this process.
    home = str(Path(__file__).parents[2])
    inner["PYTHONPATH"] = os.pathsep.join(filter(None, [home, outer.get("PYTHONPATH")]))
    inner["JAX_PLATFORMS"] = "cpu"
    inner["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if topology.chip.platform == "tpu":
        # No logs, and several processes at once.
        inner |= {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": "v5litepod-16",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_WORKER_ID": "0",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
    if not thorough:
        # Both are needed: with the first alone the compiler refuses programs that fit, because it
        # expects them to need a third more memory than they do in the end.
        inner |= {"JAX_OPTIMIZATION_LEVEL": "O0", "JAX_MEMORY_FITTING_LEVEL": "O0"}
    return inner


def check_compiler(topology: Topology) -> None:
    """Raises MissingExtra unless a compiler for `topology` is installed; imports nothing."""
    wanted, package, extra = {
        "tpu": (("libtpu",), "libtpu", "plan"),
        "cuda": (
            ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12"),
            "jax-cuda13-plugin",
            "plan-cuda",
        ),
    }[topology.chip.platform]
    if not any(map(is_installed, wanted)):
        raise MissingExtra(str(topology), package, extra)


def devices(topology: Topology) -> list[Any]:
    """Devices to compile for, slice by slice, which cannot run anything; needs `environment`.

    Raises:
        TopologyError: the compiler does not know such a slice.
    """
    from jax.experimental import topologies

    sides = "x".join(map(str, topology.shape))
    try:
        if topology.chip.platform == "cuda":
            described = topologies.get_topology_desc(
                topology_name=topology.chip.name,
                platform="cuda",
                target_config=_H100_TARGET,
                topology=f"1x{topology.slices}x{topology.neighbours}",
            )
        else:
            described = topologies.get_topology_desc(
                topology_name=f"{topology.chip.name}:{sides}",
                platform="tpu",
                **({"num_slices": topology.slices} if topology.slices > 1 else {}),
            )
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise TopologyError(
            f"--topology is {str(topology)!r}; the compiler says: {first}"
        ) from None
    return list(described.devices)


def _hosts(name: str, chip: Chip, shape: tuple[int, ...], count: int) -> Topology:
    """GPUs: hosts of at most `largest_slice`, each with a switch of its own."""
    total, each = count * math.prod(shape), chip.largest_slice
    if len(shape) > 1 or (total > each and total % each):
        raise TopologyError(
            f"--topology is {name!r}; one host has up to {each} chips, and several hosts have"
            f" {each} chips each: {chip.name}:{each}, {chip.name}:{2 * each}"
        )
    return Topology(chip, (min(total, each),), max(total // each, 1))


def _right_names(name: str) -> str:
    """A hint for a wrong name: a shape for a count, or the right name of a chip."""
    known = "names are like v5e:4x4, 2xv5e:16x16 (two slices), v5p:4x4x8, h100:8"
    match = re.fullmatch(r"(v\d\w*?|tpu7x|h100)(?:litepod)?[-_]?(\d+)?(?:[-:].*)?", name.lower())
    heads = difflib.get_close_matches(re.split(r"[-:]", name.lower())[0], CHIPS, 1, 0.3)
    if match is not None and match[1] + "e" in CHIPS and "lite" in name:
        heads = [match[1] + "e"]
    count = re.search(r"[-:](\d+)$", name)
    if not heads:
        return f"chips are {', '.join(CHIPS)}, and {known}"
    chip = CHIPS[heads[0]]
    if count is None:
        return f"chips are {', '.join(CHIPS)}, and {known}"
    # The cloud counts cores of v4 and v5p, and chips of the others.
    cores = 2 if chip.name in ("v4", "v5p") else 1
    shape = _nearly_square(max(int(count[1]) // cores, 1), chip.dimensions or 1)
    return f"did you mean {chip.name}:{'x'.join(map(str, shape))}? {known}"


def _nearly_square(count: int, dimensions: int) -> list[int]:
    """Sides of `dimensions` whose product is `count`, as equal as possible, the least first."""
    sides: list[int] = []
    for left in range(dimensions, 1, -1):
        side = next(s for s in range(round(count ** (1 / left)), 0, -1) if count % s == 0)
        sides.append(side)
        count //= side
    return [*sides, count]


# A GpuTargetConfigProto of the SXM5 card, as XLA would read it off the machine.
_H100_TARGET = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  threads_per_warp: 32
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  memory_bandwidth: 3352000000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  fpus_per_core: 128
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
