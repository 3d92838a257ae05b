"""Published figures of chips, and the memory that the compiler lets a program use.

Rates are peaks per chip, not measurements: times computed from them are lower bounds.
"""

from typing import NamedTuple

__all__ = ["CHIPS", "Chip"]

GIB = 2**30
TERA, GIGA = 1e12, 1e9


class Chip(NamedTuple):
    """One chip, which JAX may show as several devices."""

    name: str
    platform: str
    """Platform of its compiler: "tpu" or "cuda"."""
    dimensions: int
    """Dimensions of the network inside a slice; 0 for a switch."""
    largest_slice: int
    """Number of chips in the largest slice or host."""
    devices: int
    """Number of devices that the compiler sees in one chip: its cores, or 1."""
    bfloat16_flops: float
    """FLOP/s of matrix products."""
    float32_flops: float
    """The same for float32 arrays at JAX's default precision."""
    hbm_bytes: int
    usable_bytes: int
    """The part of a chip's memory that a program of JAX can use."""
    hbm_bandwidth: float
    """Bytes/s."""
    link_bandwidth: float
    """Bytes/s that one chip can send over all links; makers publish both directions together."""
    network_bandwidth: float | None
    """Bytes/s that one chip can send out of its slice or host; None if it is not published."""


# A TPU multiplies float32 arrays in bfloat16 by default
# (https://docs.jax.dev/en/latest/jax.lax.html#jax.lax.Precision), at the same rate.
# Usable bytes are those that the compiler names in its error for a program that is too large.
_V4 = Chip(
    # https://cloud.google.com/tpu/docs/v4: 275 TFLOPs, 32 GiB at 1200 GBps, 4096 chips. Six links
    # of 50 GB/s each way: Jouppi et al. 2023, table 4 (https://arxiv.org/abs/2304.01433).
    # Compilation ahead of time sees its two cores, 15.25 GiB each; on the machine they are one.
    name="v4",
    platform="tpu",
    dimensions=3,
    largest_slice=4096,
    devices=2,
    bfloat16_flops=275 * TERA,
    float32_flops=275 * TERA,
    hbm_bytes=32 * GIB,
    usable_bytes=int(2 * 15.25 * GIB),
    hbm_bandwidth=1200 * GIGA,
    link_bandwidth=300 * GIGA,
    network_bandwidth=None,
)
_V5E = Chip(
    # https://cloud.google.com/tpu/docs/v5e: 197 TFLOPs, 16 GB at 819 GBps, 400 GBps both ways,
    # 256 chips, of which a whole pod has 6.4 Tbps to the data center.
    name="v5e",
    platform="tpu",
    dimensions=2,
    largest_slice=256,
    devices=1,
    bfloat16_flops=197 * TERA,
    float32_flops=197 * TERA,
    hbm_bytes=16 * GIB,
    usable_bytes=int(15.75 * GIB),
    hbm_bandwidth=819 * GIGA,
    link_bandwidth=200 * GIGA,
    network_bandwidth=6400 * GIGA / 8 / 256,
)
_V5P = Chip(
    # https://cloud.google.com/tpu/docs/v5p: 459 TFLOPs, 95 GiB at 2765 GBps, 1200 GBps both ways,
    # 50 Gbps to the data center per chip; a job takes at most 6144 of the 8960 chips.
    name="v5p",
    platform="tpu",
    dimensions=3,
    largest_slice=6144,
    devices=1,
    bfloat16_flops=459 * TERA,
    float32_flops=459 * TERA,
    hbm_bytes=96 * GIB,
    usable_bytes=int(95.73 * GIB),
    hbm_bandwidth=2765 * GIGA,
    link_bandwidth=600 * GIGA,
    network_bandwidth=50 * GIGA / 8,
)
_V6E = Chip(
    # https://cloud.google.com/tpu/docs/v6e: 918 TFLOPs, 32 GB at 1638 GBps, 800 GBps both ways,
    # 256 chips, which have 25.6 Tbps to the data center.
    name="v6e",
    platform="tpu",
    dimensions=2,
    largest_slice=256,
    devices=1,
    bfloat16_flops=918 * TERA,
    float32_flops=918 * TERA,
    hbm_bytes=32 * GIB,
    usable_bytes=int(31.24 * GIB),
    hbm_bandwidth=1638 * GIGA,
    link_bandwidth=400 * GIGA,
    network_bandwidth=25_600 * GIGA / 8 / 256,
)
_TPU7X = Chip(
    # https://cloud.google.com/tpu/docs/tpu7x: 2307 TFLOPs, 192 GiB at 7380 GBps, 1200 GBps both
    # ways, 100 Gbps to the data center per chip, 9216 chips of two devices each.
    name="tpu7x",
    platform="tpu",
    dimensions=3,
    largest_slice=9216,
    devices=2,
    bfloat16_flops=2307 * TERA,
    float32_flops=2307 * TERA,
    hbm_bytes=192 * GIB,
    usable_bytes=int(2 * 94.74 * GIB),
    hbm_bandwidth=7380 * GIGA,
    link_bandwidth=600 * GIGA,
    network_bandwidth=100 * GIGA / 8,
)
_H100 = Chip(
    # SXM5, https://resources.nvidia.com/en-us-tensor-core (datasheet): 989.4 TFLOPS in bfloat16 and
    # 494.7 in TF32, which is what JAX multiplies float32 arrays in, both without sparsity; 80 GB at
    # 3.35 TB/s; NVLink 900 GB/s both ways. 400 Gbps of InfiniBand per card: DGX H100's datasheet.
    # JAX takes three quarters of a card's memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION says
    # otherwise (https://docs.jax.dev/en/latest/gpu_memory_allocation.html).
    name="h100",
    platform="cuda",
    dimensions=0,
    largest_slice=8,
    devices=1,
    bfloat16_flops=989.4 * TERA,
    float32_flops=494.7 * TERA,
    hbm_bytes=84_942_979_072,
    usable_bytes=84_942_979_072 * 3 // 4,
    hbm_bandwidth=3352 * GIGA,
    link_bandwidth=450 * GIGA,
    network_bandwidth=400 * GIGA / 8,
)
CHIPS = {chip.name: chip for chip in (_V4, _V5E, _V5P, _V6E, _TPU7X, _H100)}
"""Chips by their names in the compilers."""
