"""What one train step needs on each device: memory by kind, FLOPs, traffic, and a bound of time.

    t >= max(FLOPs / peak, bytes / memory bandwidth, bytes sent / link bandwidth)

Makers publish the rates; the compiler states the rest, of the program that would run. This is a
lower bound: a step takes longer. Utilization is the share of the peak that the model's FLOPs,
3 x forward x batch, would reach in that time (Chowdhery et al. 2022, appendix B,
https://arxiv.org/abs/2204.02311).
"""

import math
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from ddpm_jax.config import Config, ImageSpec
from ddpm_jax.experiment import Experiment, lower_step, make_form
from ddpm_jax.plan import hlo
from ddpm_jax.plan.chips import Chip
from ddpm_jax.plan.lower import abstract_experiment, forward_flops, step_flops
from ddpm_jax.plan.topologies import Topology

__all__ = ["Estimate", "Memory", "Roofline", "estimate", "roofline", "too_much"]


class Memory(NamedTuple):
    """Bytes on one device."""

    arguments: int
    outputs: int
    aliased: int
    """Outputs that are written where arguments were."""
    temporaries: int
    peak: int
    """The most at any time, of all kinds together: not the sum of the others."""


class Roofline(NamedTuple):
    """Lower bounds of the seconds of a step, one for each resource."""

    compute: float
    memory: float
    links: float
    network: float

    @property
    def seconds(self) -> float:
        """The largest of them."""
        return max(self)

    @property
    def limit(self) -> str:
        """The resource that takes the longest."""
        return self._fields[self.index(self.seconds)]


class Estimate(NamedTuple):
    """The needs of one config on one topology."""

    mesh: dict[str, int]
    batch: int
    """Images in a step, over all devices."""
    needed_bytes: int
    """On each device: the peak, or the bytes in the compiler's error if it refused the program."""
    usable_bytes: int
    compile_seconds: float
    memory: Memory | None = None
    """None if the compiler refused the program."""
    flops: float = 0.0
    """Of one device: the larger of the count of the compiler and that of the trace."""
    bytes_accessed: float = 0.0
    """Of one device."""
    bytes_counted: bool = True
    """False if the compiler gives no count: then the bytes in memory, temporaries twice."""
    model_flops: float = 0.0
    """Of all devices together."""
    collectives: tuple[hlo.Collective, ...] = ()
    roofline: Roofline | None = None
    utilization: float = 0.0
    """The share of the peak that the model's FLOPs reach in the time of the roofline."""

    @property
    def devices(self) -> int:
        """Of the mesh."""
        return math.prod(self.mesh.values())

    @property
    def fits(self) -> bool:
        """Whether the memory suffices."""
        return self.memory is not None and self.needed_bytes <= self.usable_bytes

    @property
    def intensity(self) -> float:
        """FLOPs for each byte of memory."""
        return self.flops / self.bytes_accessed if self.bytes_accessed else 0.0


def estimate(
    config: Config,
    topology: Topology,
    devices: Sequence[Any],
    spec: ImageSpec,
) -> Estimate:
    """Compiles the train step for `devices` and reads the program.

    Raises:
        UserError: a config that cannot work, or not on so many devices.
    """
    experiment = abstract_experiment(config, devices, spec)
    chip, mesh = topology.chip, experiment.mesh
    lowered = lower_step(experiment, make_form(experiment))
    start = time.perf_counter()
    common: dict[str, Any] = {
        "mesh": {str(name): size for name, size in mesh.shape.items()},
        "batch": config.train.batch_size,
        "usable_bytes": chip.usable_bytes // chip.devices,
    }
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = too_much(str(error))
        if needed is None:
            raise
        took = time.perf_counter() - start
        return Estimate(needed_bytes=needed, compile_seconds=took, **common)
    took = time.perf_counter() - start
    memory = _memory(compiled)
    flops, accessed, counted = _work(experiment, compiled, memory)
    collectives = hlo.collectives(
        compiled.as_text() or "",
        common["mesh"],
        slice_of=[_slice_of(device, topology) for device in mesh.devices.flat],
        across="data" if topology.slices > 1 and chip.platform == "tpu" else None,
    )
    limits = roofline(chip, config.network.compute_dtype, flops, accessed, collectives)
    model = 3.0 * config.train.batch_size * forward_flops(experiment)
    peak = _peak(chip, config.network.compute_dtype) * mesh.size
    return Estimate(
        needed_bytes=memory.peak,
        compile_seconds=took,
        memory=memory,
        flops=flops,
        bytes_accessed=accessed,
        bytes_counted=counted,
        model_flops=model,
        collectives=tuple(collectives),
        roofline=limits,
        utilization=model / (limits.seconds * peak),
        **common,
    )


def roofline(
    chip: Chip,
    dtype: str,
    flops: float,
    accessed: float,
    collectives: Sequence[hlo.Collective] = (),
) -> Roofline:
    """Seconds of one device's share of a step; see the module.

    Args:
        chip: whose rates are published.
        dtype: in which the network computes.
        flops: of one device.
        accessed: bytes that it reads and writes.
        collectives: what it sends.
    """
    links = sum(row.link_bytes for row in collectives)
    out = sum(row.network_bytes for row in collectives)
    return Roofline(
        compute=flops / _peak(chip, dtype),
        memory=accessed / (chip.hbm_bandwidth / chip.devices),
        links=links / (chip.link_bandwidth / chip.devices),
        network=out / (chip.network_bandwidth / chip.devices) if chip.network_bandwidth else 0.0,
    )


def _peak(chip: Chip, dtype: str) -> float:
    """Of one device."""
    return (chip.bfloat16_flops if dtype == "bfloat16" else chip.float32_flops) / chip.devices


def _memory(compiled: jax.stages.Compiled) -> Memory:
    analysis: Any = compiled.memory_analysis()
    return Memory(
        arguments=analysis.argument_size_in_bytes,
        outputs=analysis.output_size_in_bytes,
        aliased=analysis.alias_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        peak=analysis.peak_memory_in_bytes,
    )


def _work(
    experiment: Experiment, compiled: jax.stages.Compiled, memory: Memory
) -> tuple[float, float, bool]:
    """FLOPs and bytes of one device, and whether the compiler counted the bytes.

    It counts a loop's body once. If the trace has more FLOPs, bytes are scaled by the same ratio.
    """
    traced = step_flops(experiment) / experiment.mesh.size
    cost: Any = compiled.cost_analysis() or {}
    flops, accessed = float(cost.get("flops", 0.0)), float(cost.get("bytes accessed", 0.0))
    if flops <= 0.0 or accessed <= 0.0:
        return traced, float(memory.arguments + memory.outputs + 2 * memory.temporaries), False
    more = max(traced / flops, 1.0)
    return more * flops, more * accessed, True


def _slice_of(device: Any, topology: Topology) -> int:
    if topology.slices == 1:
        return 0
    return device.process_index if topology.chip.platform == "cuda" else device.slice_index


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def too_much(message: str) -> int | None:
    """The bytes that a program needs by the error of a TPU's compiler; None for another error."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    size = r"([\d.]+)([KMGT]?)"
    patterns = (rf"Used {size} of", rf"memory required .*?\({size}i?B?\)", rf"allocate {size}i?B?")
    for pattern in patterns:
        if match := re.search(pattern, message):
            return math.ceil(float(match[1]) * _UNITS[match[2]])
    return 0
