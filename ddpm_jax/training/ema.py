"""Exponential moving average of the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["decay_at", "update"]


def decay_at(step: Int[Array, ""], decay: float) -> Float[Array, ""]:
    """min(decay, (1 + step) / (10 + step)): early averages forget the random start quickly."""
    step = step.astype(jnp.float32)
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def update(average: Any, params: Any, decay: Float[Array, ""]) -> Any:
    """decay * average + (1 - decay) * params, leaf by leaf."""
    return jax.tree.map(lambda old, new: old + (1.0 - decay) * (new - old), average, params)
