"""How the time of each training example is drawn.

A single-time estimate of a sum over the chain, sum_t L_t, is T L_t with t uniform on [0, T).
Both functions here make each example's t uniform, so both are unbiased; they differ in how a
batch is spread over the chain.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from ddpm_jax.checks import check_key

__all__ = ["stratified", "uniform"]


def uniform(key: Key[Array, ""], batch: int, num_steps: int) -> Int[Array, " batch"]:
    """Independent times, int32 `[batch]`, uniform on [0, num_steps).

    Raises:
        TypeError, ValueError: `key` is not a typed key, or a count below 1.
    """
    _check(key, batch, num_steps)
    return jax.random.randint(key, (batch,), 0, num_steps, dtype=jnp.int32)


def stratified(key: Key[Array, ""], batch: int, num_steps: int) -> Int[Array, " batch"]:
    """Times that cover the chain evenly within each batch (Kingma et al. 2021, appendix I.1).

    One offset is drawn for the whole batch; example i gets the time at (offset + i / batch) mod 1
    of the way along. Each t is uniform on [0, num_steps), but the batch has no clumps and no
    gaps, so the estimate of the ELBO varies less. The offset is drawn on the integer lattice of
    batch * num_steps points, where this is exact and not only to rounding.

    Raises:
        TypeError, ValueError: `key` is not a typed key, a count below 1, or a lattice of
            2^30 points or more.
    """
    _check(key, batch, num_steps)
    lattice = batch * num_steps
    if lattice >= 2**30:
        raise ValueError(
            f"batch * num_steps is {lattice}; stratified times count below 2^30 = {2**30}"
        )
    offset = jax.random.randint(key, (), 0, lattice, dtype=jnp.int32)
    places = jnp.arange(batch, dtype=jnp.int32) * num_steps
    return (offset + places) % lattice // batch


def _check(key: jax.Array, batch: int, num_steps: int) -> None:
    check_key("key", key)
    for name, count in (("batch", batch), ("num_steps", num_steps)):
        if count < 1:
            raise ValueError(f"{name} is {count}; it has to be at least 1")
