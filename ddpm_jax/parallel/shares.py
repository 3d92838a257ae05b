"""The share of the work of each process, for work that needs no collectives: blocks by number.

Block i belongs to process i mod the number of processes. Each process computes its blocks on its
own devices, so that no process waits for another until all are done.
"""

from collections.abc import Iterator

import jax
from jax.sharding import Mesh

from ddpm_jax.parallel.mesh import make_mesh

__all__ = ["local_mesh", "own_blocks"]


def own_blocks(num: int, size: int) -> Iterator[tuple[int, int]]:
    """The blocks of this process among `num` items: pairs (number of the first item, items).

    Args:
        num: number of items.
        size: items in a block; the last block may have fewer.

    Returns:
        An iterator over the blocks, in their order.
    """
    for first in range(jax.process_index() * size, num, jax.process_count() * size):
        yield first, min(size, num - first)


def local_mesh() -> Mesh:
    """The mesh of the devices of this process."""
    return make_mesh(devices=jax.local_devices())
