"""The share of the work of each process, for work that needs no collectives: blocks by number.

Block i belongs to process i mod the number of processes. Each process computes its blocks on its
own devices, so that no process waits for another until all are done.
"""

from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.parallel import hosts
from ddpm_jax.parallel.mesh import make_mesh

__all__ = ["BLOCK", "blocks_of", "gathered_blocks", "is_local", "local_mesh", "own_blocks"]

BLOCK = 1000
"""Images in a block: in a file of samples, and wherever a process reads images by their number."""


def own_blocks(num: int, size: int) -> Iterator[tuple[int, int]]:
    """The blocks of this process among `num` items: pairs (number of the first item, items).

    Args:
        num: number of items.
        size: items in a block; the last block may have fewer.

    Returns:
        An iterator over the blocks, in their order.
    """
    return blocks_of(jax.process_index(), jax.process_count(), num, size)


def blocks_of(index: int, count: int, num: int, size: int) -> Iterator[tuple[int, int]]:
    """The blocks of process `index` of `count` processes, as `own_blocks` gives them.

    Args:
        index: number of the process.
        count: number of processes.
        num: number of items.
        size: items in a block; the last block may have fewer.

    Returns:
        An iterator over the blocks, in their order.
    """
    for first in range(index * size, num, count * size):
        yield first, min(size, num - first)


def gathered_blocks(own: np.ndarray, num: int, size: int) -> np.ndarray:
    """The rows of all items, of which each process has those of its own blocks.

    Args:
        own: `[items of the own blocks, ...]`, in their order.
        num: number of items.
        size: items in a block, as for `own_blocks`.

    Returns:
        `[num, ...]`, in every process.
    """
    shares = hosts.gathered_arrays(own)
    rows = np.empty((num, *own.shape[1:]), own.dtype)
    for index, share in enumerate(shares):
        place = 0
        for first, items in blocks_of(index, len(shares), num, size):
            rows[first : first + items] = share[place : place + items]
            place += items
    return rows


def local_mesh() -> Mesh:
    """The mesh of the devices of this process."""
    return make_mesh(devices=jax.local_devices())


def is_local(mesh: Mesh) -> bool:
    """Whether all devices of a mesh are of this process, so that no other has to take part."""
    return not mesh.is_multi_process
