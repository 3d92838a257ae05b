"""The losses of a batch as a function of the parameters of the network."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from ddpm_jax.forward import q_sample
from ddpm_jax.losses import target
from ddpm_jax.predictions import Predicts
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
    """The random draws for each example of a batch.

    They follow from the step's key and the example's place in the batch only, and do not depend on
    the mesh or on `accumulate`.
    """

    key: Key[Array, " batch"]
    """Key of the example's noise and dropout."""
    t: Int[Array, " batch"]
    """Time of the chain."""
    weight: Float[Array, " batch"]
    """Weight of the loss, 1 / (T p(t)): it is 1 if all times are drawn equally often."""


class Labelled(NamedTuple):
    """A batch with the class of each example."""

    x0: Float[Array, "batch *data"]
    """Images in [-1, 1]."""
    labels: Int[Array, " batch"]
    """Classes, int32; -1 for no class."""


Losses = Callable[[Any, Any, Drawn], Array]
"""`(params, batch, drawn) -> losses [batch]`, without the weights. The loss of an example does not
depend on other examples."""

_LABEL = 1
"""Number that is folded into a dropout key for the draw that hides a label."""


class LossTerms(NamedTuple):
    """The terms of a loss: images, noise, and the output of the network."""

    process: Modal
    """The forward process."""
    prediction: Float[Array, "batch *data"]
    """The network's output at (x_t, t), a prediction of `predicts`."""
    interpolation: Float[Array, "batch *data"] | None
    """The second output of a network with a learned variance, see
    `ddpm_jax.reverse.learned_log_variance`; otherwise None."""
    x0: Float[Array, "batch *data"]
    """Images in [-1, 1]."""
    x_t: Float[Array, "batch *data"]
    """Noised images at t."""
    t: Int[Array, " batch"]
    """Time of the chain, 0 <= t < T."""
    eps: Float[Array, "batch *data"]
    """The noise in x_t."""
    weight: Float[Array, " batch"]
    """Weight of t, for objectives that need it. The caller multiplies the loss by it."""
    predicts: Predicts
    """What the network predicts, see `ddpm_jax.predictions`."""
    variance: Variance
    """Variance of p(x_{t-1} | x_t), see `ddpm_jax.reverse`."""
    levels: int
    """Number of grey levels of the images."""

    @property
    def target(self) -> Float[Array, "batch *data"]:
        """The value that `prediction` should have."""
        return target(self.process, self.x0, self.t, self.eps, predicts=self.predicts)


class TimeLaw(NamedTuple):
    """The law by which training draws t, as three pure functions.

    The memory is a pytree that the law updates from the losses: a `timesteps.LossHistory` for
    importance sampling; by default `()`.
    """

    draw: Callable[[Array, int, Any], tuple[Array, Array]]
    """`(key, batch, memory) -> (t [batch], weight [batch])`, int32 and float32."""
    remember: Callable[[Any, Array, Array], Any] = lambda memory, t, losses: memory
    """`(memory, t, losses) -> memory`, called after each whole batch."""
    initial_memory: Callable[[], Any] = tuple
    """Returns the memory before the first step."""


class Objective(NamedTuple):
    """What training minimizes: losses at times that a law draws."""

    times: TimeLaw
    """The law of times."""
    losses: Losses
    """The losses, which a mesh computes in parts."""


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
    """The losses of a batch as a function of the parameters.

    Args:
        apply: the network, `(params, x_t, t, train=, keys=) -> prediction`, with a key for the
            dropout of each example; `-> (prediction, interpolation)` with the learned range. See
            `ddpm_jax.models.network_function`.
        process: the forward process.
        loss: `terms -> loss [batch]`.
        predicts: what the network predicts, see `ddpm_jax.predictions`.
        levels: number of grey levels of the images.
        variance: of p(x_{t-1} | x_t).
        label_dropout: probability, in [0, 1), with which an example's label is hidden in training,
            so that the network also learns without labels (Ho & Salimans 2022, algorithm 1).
        train: turns dropout on.

    Returns:
        A function `(params, batch, drawn) -> losses [batch]`. A batch is x0 in [-1, 1], or
        `Labelled` for a network with classes.

    Raises:
        ValueError: the prediction does not work with the process.
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
    """The law that always draws the same t, for tests and measurements.

    Args:
        t: time of the chain.

    Returns:
        A law without memory, whose weights are 1.
    """
    return TimeLaw(
        lambda key, batch, memory: (jnp.full(batch, t, jnp.int32), jnp.ones(batch, jnp.float32))
    )


def draw(objective: Objective, key: Key[Array, ""], batch: int, memory: Any) -> Drawn:
    """The random draws of a batch of `batch` examples from `key`."""
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
    """The weighted losses of a batch, to measure them; the law of times may not have a memory.

    Args:
        objective: losses and law of times.
        params: variables of the network.
        key: for the random draws.
        batch: a pytree of arrays `[batch, ...]`, as the losses take it.

    Returns:
        float32 `[batch]`, in the unit of the losses.
    """
    drawn = draw(objective, key, jax.tree.leaves(batch)[0].shape[0], ())
    return drawn.weight * objective.losses(params, batch, drawn)


def _hides_label(key: Array, *, rate: float) -> Array:
    return jax.random.bernoulli(jax.random.fold_in(key, _LABEL), rate)
