"""The loss of a batch as a function of the parameters: where the core meets the network."""

from collections.abc import Callable
from typing import Any, Literal

import jax
from jaxtyping import Array, Float, Int

from ddpm_jax import timesteps
from ddpm_jax.forward import Predicts, q_sample
from ddpm_jax.losses import (
    Weighting,
    elbo_loss,
    hybrid_loss,
    min_snr,
    p2,
    simple_loss,
    truncated_snr,
    weighted_loss,
)
from ddpm_jax.processes import Modal
from ddpm_jax.reverse import Variance, check_predicts, split_output

__all__ = ["LossFn", "Objective", "Times", "check_objective", "initial_memory", "make_loss"]

Objective = Literal["simple", "elbo", "hybrid", "min_snr", "p2", "truncated_snr"]
Times = Literal["uniform", "stratified", "importance"]
LossFn = Callable[[Any, Array, Array, Any], tuple[Array, Any]]
"""`(params, key, batch, memory) -> (loss [batch], memory)`.

The memory is a pytree of what the loss learns of itself: a `timesteps.LossHistory` where times are
drawn by importance, else `()`.
"""

_WEIGHTINGS: dict[str, Weighting] = {
    "min_snr": min_snr(),
    "p2": p2(),
    "truncated_snr": truncated_snr(),
}


def make_loss(
    apply: Callable[..., Any],
    process: Modal,
    *,
    objective: Objective,
    predicts: Predicts,
    levels: int,
    times: Times,
    variance: Variance = "small",
    train: bool = True,
) -> LossFn:
    """A function of `(params, key, x0, memory)` that draws t and eps: the loss `[batch]`, memory.

    Times drawn by importance need the memory of `initial_memory`; the loss then carries its weight,
    so that its mean estimates what uniform times estimate. Others take `()`.

    "elbo" is in bits per dimension, the others are mean squared errors without a unit. `train`
    turns dropout on. `apply` is a Flax network's: `(params, x_t, t, train=, rngs=) -> prediction`,
    with the learned range `-> (prediction, interpolation)`, which "elbo" and "hybrid" teach.

    Raises:
        ValueError: a network that the process cannot have, or an objective that leaves the second
            output untaught or wants one where there is none.
    """
    check_predicts(process, predicts)
    check_objective(objective, variance)

    def loss_at(
        params: Any, keys: list[Array], x0: Float[Array, "batch *data"], t: Int[Array, " batch"]
    ) -> Float[Array, " batch"]:
        noise_key, dropout_key = keys
        eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
        x_t = q_sample(process, x0, t, eps)
        rngs = {"dropout": dropout_key}
        output = apply(params, x_t, process.network_time(t), train=train, rngs=rngs)
        prediction, interpolation = split_output(output, variance=variance)
        told: dict[str, Any] = {"predicts": predicts, "levels": levels}
        match objective:
            case "simple":
                return simple_loss(process, prediction, x0, t, eps, predicts=predicts)
            case "elbo":
                told |= {"variance": variance, "interpolation": interpolation}
                return elbo_loss(process, prediction, x0, x_t, t, **told)
            case "hybrid":
                return hybrid_loss(process, prediction, interpolation, x0, x_t, t, eps, **told)
        weighting = _WEIGHTINGS[objective]
        return weighted_loss(
            process, prediction, x0, t, eps, predicts=predicts, weighting=weighting
        )

    def loss_fn(
        params: Any, key: Array, x0: Float[Array, "batch *data"], memory: Any
    ) -> tuple[Float[Array, " batch"], Any]:
        times_key, *keys = jax.random.split(key, 3)
        batch, num_steps = x0.shape[0], process.num_steps
        if times != "importance":
            draw = {"uniform": timesteps.uniform, "stratified": timesteps.stratified}[times]
            return loss_at(params, keys, x0, draw(times_key, batch, num_steps)), memory
        t, weight = timesteps.importance(times_key, batch, timesteps.probabilities(memory))
        loss = loss_at(params, keys, x0, t)
        memory = timesteps.update_history(memory, t, jax.lax.stop_gradient(loss))
        return weight * loss, memory

    return loss_fn


def initial_memory(times: Times, num_steps: int) -> Any:
    """What a loss with such times remembers before the first step."""
    return timesteps.loss_history(num_steps) if times == "importance" else ()


def check_objective(objective: Objective, variance: Variance) -> None:
    """Raises ValueError unless the objective teaches what the variance needs."""
    if variance == "learned_range" and objective not in ("elbo", "hybrid"):
        raise ValueError(
            f"objective is {objective!r}, which teaches no variance; with the learned range it is"
            " 'hybrid' or 'elbo'"
        )
    if variance != "learned_range" and objective == "hybrid":
        raise ValueError(
            f"objective is 'hybrid' and variance is {variance!r}; it wants 'learned_range'"
        )
