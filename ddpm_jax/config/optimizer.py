"""The optimizers of optax, and the schedules of their learning rate."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Annotated, ClassVar

import optax
from optax import contrib

from ddpm_jax.config.base import (
    COUNT,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    Affects,
    Bound,
    Member,
    check_made,
)

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "ConstantDecay",
    "CosineDecay",
    "Decay",
    "InverseSqrtDecay",
    "LinearDecay",
    "Lion",
    "Muon",
    "Optimizer",
    "make_learning_rate",
    "make_optimizer",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decay(Member):
    """The learning rate after the warm-up."""

    affects: ClassVar[Affects] = Affects.TRAINING

    @abc.abstractmethod
    def make(self, peak: float, steps: int, warmup_steps: int) -> optax.Schedule:
        """The learning rate as a function of the steps since the warm-up.

        Args:
            peak: the learning rate at the end of the warm-up.
            steps: number of training steps after the warm-up, 1 or more.
            warmup_steps: number of steps of the warm-up.

        Returns:
            A function `steps since the warm-up -> learning rate`.
        """


@dataclasses.dataclass(frozen=True)
class ConstantDecay(Decay):
    """The learning rate stays at the peak."""

    def make(self, peak: float, steps: int, warmup_steps: int) -> optax.Schedule:
        """`optax.constant_schedule`."""
        return optax.constant_schedule(peak)


@dataclasses.dataclass(frozen=True)
class CosineDecay(Decay):
    """Half a cosine from the peak down to `final` at the last step."""

    final: Annotated[float, FRACTION] = 0.0
    """Learning rate at the last step as a share of the peak, in [0, 1)."""

    def make(self, peak: float, steps: int, warmup_steps: int) -> optax.Schedule:
        """`optax.cosine_decay_schedule`."""
        return optax.cosine_decay_schedule(peak, steps, self.final)


@dataclasses.dataclass(frozen=True)
class LinearDecay(Decay):
    """A line from the peak down to `final` at the last step."""

    final: Annotated[float, FRACTION] = 0.0
    """Learning rate at the last step as a share of the peak, in [0, 1)."""

    def make(self, peak: float, steps: int, warmup_steps: int) -> optax.Schedule:
        """`optax.linear_schedule`."""
        return optax.linear_schedule(peak, self.final * peak, steps)


@dataclasses.dataclass(frozen=True)
class InverseSqrtDecay(Decay):
    """peak * sqrt(timescale / (timescale + steps since the warm-up))."""

    timescale: Annotated[int | None, COUNT] = None
    """Time scale in steps. None: the number of warm-up steps."""

    def make(self, peak: float, steps: int, warmup_steps: int) -> optax.Schedule:
        """Returns the formula as a function."""
        timescale = self.timescale or max(warmup_steps, 1)
        return lambda step: peak * (timescale / (timescale + step)) ** 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer(Member):
    """An optax optimizer, its learning rate, and a clip of the gradient's norm before it."""

    affects: ClassVar[Affects] = Affects.TRAINING
    learning_rate: Annotated[float, POSITIVE] = 2e-4
    """Peak of the learning rate, at the end of the warm-up. Lower it if training diverges."""
    warmup_steps: Annotated[
        int, Bound(lambda value: 0 <= value < 2**31, "0 or more, and below 2^31")
    ] = 5000
    """Number of steps in which the learning rate rises linearly from 0 to its peak."""
    decay: Decay = ConstantDecay()
    """The learning rate after the warm-up."""
    clip_norm: Annotated[
        float | None, Bound(lambda value: value is None or value > 0.0, "positive, or None")
    ] = 1.0
    """Largest global norm of the gradient; a larger gradient is scaled down to it. None: no
    clipping."""

    @abc.abstractmethod
    def make(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        """The optimizer, which gets the clipped gradient.

        Args:
            learning_rate: as a function of the step.

        Returns:
            An optax transformation.
        """


@dataclasses.dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma & Ba 2015)."""

    b1: Annotated[float, FRACTION] = 0.9
    """Decay of the average of gradients, in [0, 1)."""
    b2: Annotated[float, FRACTION] = 0.999
    """Decay of the average of squared gradients, in [0, 1)."""
    eps: Annotated[float, POSITIVE] = 1e-8
    """Number added to the root of the average of squared gradients."""

    def make(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        """`optax.adam`."""
        return optax.adam(learning_rate, b1=self.b1, b2=self.b2, eps=self.eps)


@dataclasses.dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    b1: Annotated[float, FRACTION] = 0.9
    """Decay of the average of gradients, in [0, 1)."""
    b2: Annotated[float, FRACTION] = 0.999
    """Decay of the average of squared gradients, in [0, 1)."""
    eps: Annotated[float, POSITIVE] = 1e-8
    """Number added to the root of the average of squared gradients."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 1e-4
    """Weight decay, which is multiplied by the learning rate."""

    def make(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        """`optax.adamw`."""
        return optax.adamw(
            learning_rate, b1=self.b1, b2=self.b2, eps=self.eps, weight_decay=self.weight_decay
        )


@dataclasses.dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent, with or without momentum."""

    momentum: Annotated[float, FRACTION] = 0.0
    """Decay of the sum of gradients, in [0, 1). 0: no momentum."""
    nesterov: bool = False
    """Use Nesterov's momentum."""

    def make(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        """`optax.sgd`."""
        return optax.sgd(learning_rate, self.momentum or None, self.nesterov)


@dataclasses.dataclass(frozen=True)
class Lion(Optimizer):
    """Lion, which steps along the sign of an average of gradients (Chen et al. 2023)."""

    b1: Annotated[float, FRACTION] = 0.9
    """Weight of the average in the update, in [0, 1)."""
    b2: Annotated[float, FRACTION] = 0.99
    """Decay of the average of gradients, in [0, 1)."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 1e-3
    """Weight decay, which is multiplied by the learning rate."""

    def make(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        """`optax.lion`."""
        return optax.lion(learning_rate, b1=self.b1, b2=self.b2, weight_decay=self.weight_decay)


@dataclasses.dataclass(frozen=True)
class Muon(Optimizer):
    """Orthogonalized momentum for matrices, AdamW for the rest (Jordan 2024)."""

    beta: Annotated[float, FRACTION] = 0.95
    """Decay of the average of gradients, in [0, 1)."""
    ns_steps: Annotated[int, COUNT] = 5
    """Number of Newton-Schulz iterations, which orthogonalize an update."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.0
    """Weight decay, which is multiplied by the learning rate."""
    nesterov: bool = True
    """Use Nesterov's momentum."""

    def make(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        """`optax.contrib.muon`."""
        return contrib.muon(
            learning_rate,
            beta=self.beta,
            ns_steps=self.ns_steps,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )


def make_learning_rate(optimizer: Optimizer, steps: int) -> optax.Schedule:
    """The learning rate of a whole run: a linear warm-up from 0, then the member's decay.

    Args:
        optimizer: with the peak, the warm-up and the decay.
        steps: number of training steps, warm-up included.

    Returns:
        A function `step -> learning rate`.

    Raises:
        ConfigError: the decay's `make` returned no function.
    """
    peak, warmup_steps = optimizer.learning_rate, optimizer.warmup_steps
    warmup = optax.linear_schedule(0.0, peak, max(warmup_steps, 1))
    rest = optimizer.decay.make(peak, max(steps - warmup_steps, 1), warmup_steps)
    check_made("optimizer.decay", optimizer.decay, rest, Callable)
    return optax.join_schedules([warmup, rest], [warmup_steps])


def make_optimizer(
    optimizer: Optimizer, learning_rate: optax.Schedule
) -> optax.GradientTransformation:
    """The optimizer, with the clip of the gradient's norm before it.

    Args:
        optimizer: the member.
        learning_rate: as a function of the step, see `make_learning_rate`.

    Returns:
        An optax transformation.

    Raises:
        ConfigError: the member's `make` returned something else.
    """
    made = optimizer.make(learning_rate)
    check_made("optimizer", optimizer, made, optax.GradientTransformation)
    if optimizer.clip_norm is None:
        return made
    return optax.chain(optax.clip_by_global_norm(optimizer.clip_norm), made)
