"""The loss of a batch as a function of the parameters: where the core meets the network."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from ddpm_jax.forward import Predicts, q_sample
from ddpm_jax.losses import target
from ddpm_jax.processes import Modal
from ddpm_jax.reverse import Variance, check_predicts, split_output

__all__ = [
    "Drawn",
    "Labelled",
    "LossTerms",
    "Losses",
    "Objective",
    "TimeLaw",
    "draw",
    "fixed_times",
    "make_losses",
    "weighted_losses",
]


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
"""Folded into a dropout key for the draw that hides a label."""


class LossTerms(NamedTuple):
    """The terms of the loss of a batch: the noise that was added and the output of the network."""

    process: Modal
    prediction: Float[Array, "batch *data"]
    """The network's output at (x_t, t), which stands for `predicts`."""
    interpolation: Float[Array, "batch *data"] | None
    """Its second output, of a learned variance; see `reverse.learned_log_variance`."""
    x0: Float[Array, "batch *data"]
    x_t: Float[Array, "batch *data"]
    t: Int[Array, " batch"]
    eps: Float[Array, "batch *data"]
    weight: Float[Array, " batch"]
    """Of t, for objectives that need it; the caller of the loss multiplies by it."""
    predicts: Predicts
    variance: Variance
    levels: int
    """Grey levels of the images."""

    @property
    def target(self) -> Float[Array, "batch *data"]:
        """The value that `prediction` should have."""
        return target(self.process, self.x0, self.t, self.eps, predicts=self.predicts)


class TimeLaw(NamedTuple):
    """How t is drawn, in three pure functions.

    The memory is a pytree that the law learns from the losses: a `timesteps.LossHistory` for
    importance sampling; by default `()`.
    """

    draw: Callable[[Array, int, Any], tuple[Array, Array]]
    """`(key, batch, memory) -> t [batch], weight [batch]`."""
    remember: Callable[[Any, Array, Array], Any] = lambda memory, t, losses: memory
    """`(memory, t, losses) -> memory`, after the whole batch."""
    initial_memory: Callable[[], Any] = tuple


class Objective(NamedTuple):
    """What training minimizes: losses at times that a law draws. A mesh shares out the losses."""

    times: TimeLaw
    losses: Losses


def make_losses(
    apply: Callable[..., Any],
    process: Modal,
    loss: Callable[[LossTerms], Array],
    *,
    predicts: Predicts,
    levels: int,
    variance: Variance = "small",
    label_dropout: float = 0.0,
    train: bool = True,
) -> Losses:
    """The losses of images x0 in [-1, 1]. A batch is x0, or `Labelled` for a network with classes.

    Args:
        apply: a network's, `(params, x_t, t, train=, keys=) -> prediction` with a key for the
            dropout of each example; with the learned range `-> (prediction, interpolation)`.
        process: the forward process.
        loss: `terms -> loss [batch]`.
        predicts: what the prediction stands for.
        levels: grey levels of the images.
        variance: of p(x_{t-1} | x_t).
        label_dropout: probability with which an example's label is hidden in training, so that
            the network learns to do without (Ho & Salimans 2022, algorithm 1).
        train: turns dropout on.

    Raises:
        ValueError: a prediction that does not work with the process.
    """
    check_predicts(process, predicts)

    def losses(
        params: Any, batch: Float[Array, "batch *data"] | Labelled, drawn: Drawn
    ) -> Float[Array, " batch"]:
        noise_keys, dropout_keys = jax.vmap(jax.random.split, out_axes=1)(drawn.key)
        classes: dict[str, Array] = {}
        if isinstance(batch, Labelled):
            x0, labels = batch
            if train and label_dropout > 0.0:
                hidden = jax.vmap(functools.partial(_hides_label, rate=label_dropout))(dropout_keys)
                labels = jnp.where(hidden, -1, labels)
            classes["labels"] = labels
        else:
            x0 = batch
        normal = functools.partial(jax.random.normal, shape=x0.shape[1:], dtype=x0.dtype)
        t, eps = drawn.t, jax.vmap(normal)(noise_keys)
        x_t = q_sample(process, x0, t, eps)
        network_time = process.network_time(t)
        output = apply(params, x_t, network_time, train=train, keys=dropout_keys, **classes)
        prediction, interpolation = split_output(output, variance=variance)
        terms = LossTerms(
            process=process,
            prediction=prediction,
            interpolation=interpolation,
            x0=x0,
            x_t=x_t,
            t=t,
            eps=eps,
            weight=drawn.weight,
            predicts=predicts,
            variance=variance,
            levels=levels,
        )
        return loss(terms)

    return losses


def fixed_times(t: int = 0) -> TimeLaw:
    """The law of one t, without weights or memory: for tests and measurements."""
    return TimeLaw(
        lambda key, batch, memory: (jnp.full(batch, t, jnp.int32), jnp.ones(batch, jnp.float32))
    )


def draw(objective: Objective, key: Key[Array, ""], batch: int, memory: Any) -> Drawn:
    """What a batch of so many examples draws from `key`."""
    times_key, examples_key = jax.random.split(key)
    t, weight = objective.times.draw(times_key, batch, memory)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(examples_key, jnp.arange(batch, dtype=jnp.int32))
    return Drawn(keys, t, weight)


def weighted_losses(
    objective: Objective,
    params: Any,
    key: Key[Array, ""],
    batch: PyTree[Shaped[Array, "batch ..."]],
) -> Float[Array, " batch"]:
    """The weighted losses of a batch by an objective without memory, to measure them."""
    drawn = draw(objective, key, jax.tree.leaves(batch)[0].shape[0], ())
    return drawn.weight * objective.losses(params, batch, drawn)


def _hides_label(key: Array, *, rate: float) -> Array:
    return jax.random.bernoulli(jax.random.fold_in(key, _LABEL), rate)
