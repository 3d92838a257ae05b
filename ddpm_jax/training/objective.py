"""The loss of a batch as a function of the parameters: where the core meets the network."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

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

__all__ = [
    "Drawn",
    "Labelled",
    "Losses",
    "Objective",
    "ObjectiveName",
    "Times",
    "check_objective",
    "deterministic",
    "draw",
    "make_objective",
    "weighted_losses",
]

ObjectiveName = Literal["simple", "elbo", "hybrid", "min_snr", "p2", "truncated_snr"]
Times = Literal["uniform", "stratified", "importance"]


class Drawn(NamedTuple):
    """What is random about each example of a batch.

    It follows from the step's key and the example's place in the batch, and from nothing else: not
    from the mesh, nor from the parts that a batch is taken in.
    """

    key: Key[Array, " batch"]
    """Of the example's noise and dropout."""
    t: Int[Array, " batch"]
    weight: Float[Array, " batch"]
    """Of its loss: 1, or what makes up for a t that is drawn more often than others."""


class Labelled(NamedTuple):
    """A batch with the class of each example, int32; -1 is none."""

    x0: Float[Array, "batch *data"]
    labels: Int[Array, " batch"]


Losses = Callable[[Any, Any, Drawn], Array]
"""`(params, batch, drawn) -> loss [batch]`, without the weights. The loss of an example depends on
no other example."""

_LABEL = 1
"""What a dropout key is folded with for the draw that takes a label away."""


class Objective(NamedTuple):
    """What is descended, in three pure functions, so that a mesh can share out the middle one.

    The memory is a pytree of what the objective learns of itself: a `timesteps.LossHistory` where
    times are drawn by importance, else `()`.
    """

    times: Callable[[Array, int, Any], tuple[Array, Array]]
    """`(key, batch, memory) -> t [batch], weight [batch]`."""
    losses: Losses
    remember: Callable[[Any, Array, Array], Any]
    """`(memory, t, losses) -> memory`, after the whole batch."""
    initial_memory: Callable[[], Any]


_WEIGHTINGS: dict[str, Weighting] = {
    "min_snr": min_snr(),
    "p2": p2(),
    "truncated_snr": truncated_snr(),
}


def make_objective(
    apply: Callable[..., Any],
    process: Modal,
    *,
    objective: ObjectiveName,
    predicts: Predicts,
    levels: int,
    times: Times,
    variance: Variance = "small",
    label_dropout: float = 0.0,
    train: bool = True,
) -> Objective:
    """The objective of this name, of images x0 in [-1, 1].

    "elbo" is in bits per dimension, the others are mean squared errors without a unit. A batch is
    x0, or `Labelled`, and the network is then told the labels.

    Args:
        apply: a network's, `(params, x_t, t, train=, keys=) -> prediction` with a key for the
            dropout of each example; with the learned range `-> (prediction, interpolation)`, which
            "elbo" and "hybrid" teach.
        process: the forward process.
        objective: its name.
        predicts: what the prediction stands for.
        levels: grey levels of the images.
        times: how t is drawn. By importance needs a memory; the weight is then of use.
        variance: of p(x_{t-1} | x_t).
        label_dropout: probability with which an example's label is taken away in training, so that
            the network learns to do without (Ho & Salimans 2022, algorithm 1).
        train: turns dropout on.

    Raises:
        ValueError: a network that the process cannot have, or an objective that leaves the second
            output untaught or wants one where there is none.
    """
    check_predicts(process, predicts)
    check_objective(objective, variance)
    num_steps = process.num_steps

    def losses(
        params: Any, batch: Float[Array, "batch *data"] | Labelled, drawn: Drawn
    ) -> Float[Array, " batch"]:
        noise_keys, dropout_keys = jax.vmap(jax.random.split, out_axes=1)(drawn.key)
        classes: dict[str, Array] = {}
        if isinstance(batch, Labelled):
            x0, labels = batch
            if train and label_dropout > 0.0:
                taken = jax.vmap(functools.partial(_takes_label, rate=label_dropout))(dropout_keys)
                labels = jnp.where(taken, -1, labels)
            classes["labels"] = labels
        else:
            x0 = batch
        normal = functools.partial(jax.random.normal, shape=x0.shape[1:], dtype=x0.dtype)
        t, eps = drawn.t, jax.vmap(normal)(noise_keys)
        x_t = q_sample(process, x0, t, eps)
        network_time = process.network_time(t)
        output = apply(params, x_t, network_time, train=train, keys=dropout_keys, **classes)
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

    match times:
        case "uniform" | "stratified":
            return deterministic(losses)._replace(
                times=functools.partial(_evenly, times, num_steps=num_steps)
            )
        case "importance":
            return Objective(
                times=lambda key, batch, memory: timesteps.importance(
                    key, batch, timesteps.probabilities(memory)
                ),
                losses=losses,
                remember=timesteps.update_history,
                initial_memory=lambda: timesteps.loss_history(num_steps),
            )


def deterministic(losses: Losses) -> Objective:
    """The objective of these losses, with t = 0, no weights and no memory."""
    return Objective(
        times=lambda key, batch, memory: (
            jnp.zeros(batch, jnp.int32),
            jnp.ones(batch, jnp.float32),
        ),
        losses=losses,
        remember=lambda memory, t, losses: memory,
        initial_memory=lambda: (),
    )


def draw(objective: Objective, key: Key[Array, ""], batch: int, memory: Any) -> Drawn:
    """What a batch of so many examples draws from `key`."""
    times_key, examples_key = jax.random.split(key)
    t, weight = objective.times(times_key, batch, memory)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(examples_key, jnp.arange(batch, dtype=jnp.int32))
    return Drawn(keys, t, weight)


def weighted_losses(
    objective: Objective,
    params: Any,
    key: Key[Array, ""],
    batch: PyTree[Shaped[Array, "batch ..."]],
) -> Float[Array, " batch"]:
    """The losses of a batch by an objective without memory, for whoever only measures."""
    drawn = draw(objective, key, jax.tree.leaves(batch)[0].shape[0], ())
    return drawn.weight * objective.losses(params, batch, drawn)


def _takes_label(key: Array, *, rate: float) -> Array:
    return jax.random.bernoulli(jax.random.fold_in(key, _LABEL), rate)


def _evenly(
    times: Literal["uniform", "stratified"], key: Array, batch: int, memory: Any, *, num_steps: int
) -> tuple[Array, Array]:
    drawn = {"uniform": timesteps.uniform, "stratified": timesteps.stratified}[times]
    return drawn(key, batch, num_steps), jnp.ones(batch, jnp.float32)


def check_objective(objective: ObjectiveName, variance: Variance) -> None:
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
