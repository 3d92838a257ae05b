"""The gradient of a batch's mean loss, at once or part by part."""

from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.parallel import Gradient
from ddpm_jax.training.objective import Drawn, Losses

__all__ = ["make_gradient"]


def make_gradient(losses: Losses, *, accumulate: int = 1) -> Gradient:
    """`(params, batch, drawn) -> (losses [batch], d/dparams of mean(weight * losses))`.

    With `accumulate` > 1 the batch is taken in as many parts, one after the other, and their
    gradients are averaged: the same but for rounding, with the memory for one part. Part k has the
    examples k, k + accumulate, ...: on a mesh each device then has its share of every part, and
    nothing moves.
    """

    def gradient(params: Any, batch: Any, drawn: Drawn) -> tuple[jax.Array, Any]:
        def mean_loss(params: Any) -> tuple[jax.Array, jax.Array]:
            values = losses(params, batch, drawn)
            return jnp.mean(drawn.weight * values), values

        grads, values = jax.grad(mean_loss, has_aux=True)(params)
        return values, grads

    def accumulated(params: Any, batch: Any, drawn: Drawn) -> tuple[jax.Array, Any]:
        def add(total: Any, part: Any) -> tuple[Any, jax.Array]:
            values, grads = gradient(params, *part)
            return jax.tree.map(jnp.add, total, grads), values

        parts = jax.tree.map(lambda x: _in_parts(x, accumulate), (batch, drawn))
        total, values = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)
        mean = jax.tree.map(lambda leaf: leaf / accumulate, total)
        return values.swapaxes(0, 1).reshape(-1), mean

    return gradient if accumulate == 1 else accumulated


def _in_parts(x: jax.Array, parts: int) -> jax.Array:
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
