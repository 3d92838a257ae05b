"""The loss of a batch as a function of the parameters: where the core meets the network."""

from collections.abc import Callable
from typing import Any, Literal

import jax
from jaxtyping import Array, Float

from ddpm_jax import timesteps
from ddpm_jax.forward import Predicts, q_sample
from ddpm_jax.losses import elbo_loss, simple_loss
from ddpm_jax.schedules import Schedule

__all__ = ["LossFn", "Objective", "Times", "make_loss"]

Objective = Literal["elbo", "simple"]
Times = Literal["uniform", "stratified"]
LossFn = Callable[[Any, Array, Array], Array]
"""`(params, key, x0) -> loss [batch]`."""


def make_loss(
    apply: Callable[..., Any],
    schedule: Schedule,
    *,
    objective: Objective,
    predicts: Predicts,
    levels: int,
    times: Times,
    train: bool = True,
) -> LossFn:
    """A function of `(params, key, x0)` that draws t and eps and returns the loss `[batch]`.

    "elbo" is in bits per dimension, "simple" is a mean squared error without a unit. `train`
    turns dropout on. `apply` is a Flax network's: `(params, x_t, t, train=, rngs=) -> prediction`.
    """
    draw = {"uniform": timesteps.uniform, "stratified": timesteps.stratified}[times]

    def loss_fn(params: Any, key: Array, x0: Float[Array, "batch *data"]) -> Float[Array, " batch"]:
        times_key, noise_key, dropout_key = jax.random.split(key, 3)
        t = draw(times_key, x0.shape[0], schedule.num_steps)
        eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
        x_t = q_sample(schedule, x0, t, eps)
        prediction: Array = apply(
            params, x_t, schedule.network_time(t), train=train, rngs={"dropout": dropout_key}
        )
        if objective == "simple":
            return simple_loss(schedule, prediction, x0, t, eps, predicts=predicts)
        return elbo_loss(schedule, prediction, x0, x_t, t, predicts=predicts, levels=levels)

    return loss_fn
