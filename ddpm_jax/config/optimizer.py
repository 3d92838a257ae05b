"""How parameters follow the gradient: optax's optimizers, and laws of the learning rate."""

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
    """What the learning rate does after the warm-up."""

    affects: ClassVar[Affects] = Affects.TRAINING

    @abc.abstractmethod
    def make(self, peak: float, steps: int, warmup_steps: int) -> optax.Schedule:
        """The learning rate as a function of the steps since the warm-up.

        Args:
            peak: where the warm-up ends.
            steps: of training after the warm-up, 1 or more.
            warmup_steps: before.
        """


@dataclasses.dataclass(frozen=True)
class ConstantDecay(Decay):
    """It stays at the peak."""

    def make(self, peak: float, steps: int, warmup_steps: int) -> optax.Schedule:
        """`optax.constant_schedule`."""
        return optax.constant_schedule(peak)


@dataclasses.dataclass(frozen=True)
class CosineDecay(Decay):
    """Half a cosine down to `final` at the last step."""

    final: Annotated[float, FRACTION] = 0.0
    """Share of the peak."""

    def make(self, peak: float, steps: int, warmup_steps: int) -> optax.Schedule:
        """`optax.cosine_decay_schedule`."""
        return optax.cosine_decay_schedule(peak, steps, self.final)


@dataclasses.dataclass(frozen=True)
class LinearDecay(Decay):
    """A line down to `final` at the last step."""

    final: Annotated[float, FRACTION] = 0.0
    """Share of the peak."""

    def make(self, peak: float, steps: int, warmup_steps: int) -> optax.Schedule:
        """`optax.linear_schedule`."""
        return optax.linear_schedule(peak, self.final * peak, steps)


@dataclasses.dataclass(frozen=True)
class InverseSqrtDecay(Decay):
    """peak * sqrt(timescale / (timescale + steps since the warm-up))."""

    timescale: Annotated[int | None, COUNT] = None
    """In steps; by default those of the warm-up."""

    def make(self, peak: float, steps: int, warmup_steps: int) -> optax.Schedule:
        """A function of one expression."""
        timescale = self.timescale or max(warmup_steps, 1)
        return lambda step: peak * (timescale / (timescale + step)) ** 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer(Member):
    """An optax transformation behind a clip of the gradient's norm, and its learning rate."""

    affects: ClassVar[Affects] = Affects.TRAINING
    learning_rate: Annotated[float, POSITIVE] = 2e-4
    """At its peak."""
    warmup_steps: Annotated[
        int, Bound(lambda value: 0 <= value < 2**31, "0 or more, and below 2^31")
    ] = 5000
    """Over so many steps the learning rate rises linearly from 0."""
    decay: Decay = ConstantDecay()
    """What it does then."""
    clip_norm: Annotated[
        float | None, Bound(lambda value: value is None or value > 0.0, "positive, or None")
    ] = 1.0
    """The gradient's global norm is cut to this; None leaves it as it is."""

    @abc.abstractmethod
    def make(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        """The transformation of clipped gradients."""


@dataclasses.dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma & Ba 2015)."""

    b1: Annotated[float, FRACTION] = 0.9
    b2: Annotated[float, FRACTION] = 0.999
    eps: Annotated[float, POSITIVE] = 1e-8

    def make(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        """`optax.adam`."""
        return optax.adam(learning_rate, b1=self.b1, b2=self.b2, eps=self.eps)


@dataclasses.dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    b1: Annotated[float, FRACTION] = 0.9
    b2: Annotated[float, FRACTION] = 0.999
    eps: Annotated[float, POSITIVE] = 1e-8
    weight_decay: Annotated[float, NOT_NEGATIVE] = 1e-4

    def make(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        """`optax.adamw`."""
        return optax.adamw(
            learning_rate, b1=self.b1, b2=self.b2, eps=self.eps, weight_decay=self.weight_decay
        )


@dataclasses.dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent, with momentum if it is not 0."""

    momentum: Annotated[float, FRACTION] = 0.0
    nesterov: bool = False

    def make(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        """`optax.sgd`."""
        return optax.sgd(learning_rate, self.momentum or None, self.nesterov)


@dataclasses.dataclass(frozen=True)
class Lion(Optimizer):
    """The sign of an average of gradients (Chen et al. 2023)."""

    b1: Annotated[float, FRACTION] = 0.9
    b2: Annotated[float, FRACTION] = 0.99
    weight_decay: Annotated[float, NOT_NEGATIVE] = 1e-3

    def make(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        """`optax.lion`."""
        return optax.lion(learning_rate, b1=self.b1, b2=self.b2, weight_decay=self.weight_decay)


@dataclasses.dataclass(frozen=True)
class Muon(Optimizer):
    """Orthogonalized momentum for matrices, AdamW for the rest (Jordan 2024)."""

    beta: Annotated[float, FRACTION] = 0.95
    ns_steps: Annotated[int, COUNT] = 5
    """Newton-Schulz iterations."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.0
    nesterov: bool = True

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
    """Linear from 0 to the peak, then as `decay` has it until step `steps` of training."""
    peak, warmup_steps = optimizer.learning_rate, optimizer.warmup_steps
    warmup = optax.linear_schedule(0.0, peak, max(warmup_steps, 1))
    rest = optimizer.decay.make(peak, max(steps - warmup_steps, 1), warmup_steps)
    check_made("optimizer.decay", optimizer.decay, rest, Callable)
    return optax.join_schedules([warmup, rest], [warmup_steps])


def make_optimizer(
    optimizer: Optimizer, learning_rate: optax.Schedule
) -> optax.GradientTransformation:
    """The transformation behind the clip, if there is one.

    Raises:
        ConfigError: `make` returned something else.
    """
    made = optimizer.make(learning_rate)
    check_made("optimizer", optimizer, made, optax.GradientTransformation)
    if optimizer.clip_norm is None:
        return made
    return optax.chain(optax.clip_by_global_norm(optimizer.clip_norm), made)
