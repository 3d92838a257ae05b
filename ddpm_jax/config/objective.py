"""What is minimized in training, and at which times t it is taken."""

import abc
import dataclasses
import typing
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from ddpm_jax import losses, timesteps
from ddpm_jax.config.base import COUNT, FRACTION, Affects, ConfigError, Member
from ddpm_jax.training.objective import LossTerms, TimeLaw

__all__ = [
    "ELBO",
    "P2",
    "Hybrid",
    "Importance",
    "MinSNR",
    "Objective",
    "Simple",
    "Stratified",
    "Times",
    "TruncatedSNR",
    "Uniform",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(Member):
    """The loss of each example, from the output of a network at t."""

    affects: ClassVar[Affects] = Affects.TRAINING
    teaches_variance: ClassVar[bool] = False
    """Whether it teaches the second output of a network with the learned range."""
    needs_variance: ClassVar[bool] = False
    """Whether it works with such a network alone."""

    @abc.abstractmethod
    def make(self) -> Callable[[LossTerms], Array]:
        """A pure function, `terms -> loss [batch]`; the weight of t is applied by the caller."""

    def check(self, config: Any) -> None:
        """The variance of the network has to be taught, and by this one it has to be there."""
        name, learned = type(self).__name__, config.network.variance == "learned_range"
        if learned and not self.teaches_variance:
            raise ConfigError(
                f"objective is {name}, which teaches no variance; with network.variance"
                " 'learned_range' it has to be one that does, such as Hybrid"
            )
        if self.needs_variance and not learned:
            raise ConfigError(
                f"objective is {name} and network.variance is {config.network.variance!r}; it has"
                " to be 'learned_range'"
            )


@dataclasses.dataclass(frozen=True)
class Simple(Objective):
    """Mean squared error of what is predicted (Ho et al. 2020, equation 14)."""

    def make(self) -> Callable[[LossTerms], Array]:
        """`losses.simple_loss`."""
        return _of_prediction(losses.simple_loss)


@dataclasses.dataclass(frozen=True)
class ELBO(Objective):
    """Minus the ELBO, in bits per dimension."""

    teaches_variance: ClassVar[bool] = True

    def make(self) -> Callable[[LossTerms], Array]:
        """`losses.elbo_loss`."""
        return lambda terms: losses.elbo_loss(
            terms.process,
            terms.prediction,
            terms.x0,
            terms.x_t,
            terms.t,
            predicts=terms.predicts,
            levels=terms.levels,
            variance=terms.variance,
            interpolation=terms.interpolation,
        )


@dataclasses.dataclass(frozen=True)
class Hybrid(Objective):
    """The simple loss and a little of the ELBO, which teaches the variance (Nichol 2021)."""

    teaches_variance: ClassVar[bool] = True
    needs_variance: ClassVar[bool] = True
    vlb_weight: Annotated[float, FRACTION] = 1e-3
    """Of the ELBO."""

    def make(self) -> Callable[[LossTerms], Array]:
        """`losses.hybrid_loss`."""
        return lambda terms: losses.hybrid_loss(
            terms.process,
            terms.prediction,
            typing.cast("Array", terms.interpolation),  # there is one, see `check`
            terms.x0,
            terms.x_t,
            terms.t,
            terms.eps,
            predicts=terms.predicts,
            levels=terms.levels,
            vlb_weight=self.vlb_weight,
        )


@dataclasses.dataclass(frozen=True)
class MinSNR(Objective):
    """Squared error of x0, weighted by min(SNR, gamma) (Hang et al. 2023)."""

    gamma: float = 5.0

    def make(self) -> Callable[[LossTerms], Array]:
        """`losses.weighted_loss` with `losses.min_snr`."""
        return _of_prediction(losses.weighted_loss, weighting=losses.min_snr(self.gamma))


@dataclasses.dataclass(frozen=True)
class P2(Objective):
    """Squared error of x0, weighted by SNR / (k + SNR)^gamma (Choi et al. 2022)."""

    k: float = 1.0
    gamma: float = 1.0

    def make(self) -> Callable[[LossTerms], Array]:
        """`losses.weighted_loss` with `losses.p2`."""
        return _of_prediction(losses.weighted_loss, weighting=losses.p2(self.k, self.gamma))


@dataclasses.dataclass(frozen=True)
class TruncatedSNR(Objective):
    """Squared error of x0, weighted by max(SNR, minimum) (Salimans & Ho 2022)."""

    minimum: float = 1.0

    def make(self) -> Callable[[LossTerms], Array]:
        """`losses.weighted_loss` with `losses.truncated_snr`."""
        weighting = losses.truncated_snr(self.minimum)
        return _of_prediction(losses.weighted_loss, weighting=weighting)


def _of_prediction(loss: Callable[..., Array], **kwargs: Any) -> Callable[[LossTerms], Array]:
    """A loss of the prediction alone as a function of the terms."""
    return lambda terms: loss(
        *(terms.process, terms.prediction, terms.x0, terms.t, terms.eps),
        predicts=terms.predicts,
        **kwargs,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times(Member):
    """The law by which training draws t; see `ddpm_jax.timesteps`."""

    affects: ClassVar[Affects] = Affects.TRAINING

    @abc.abstractmethod
    def make(self, num_steps: int) -> TimeLaw:
        """The law for a chain of so many steps."""

    def held_out(self) -> "Times":
        """The law for held-out losses, which has no memory of training."""
        return self


@dataclasses.dataclass(frozen=True)
class Uniform(Times):
    """Independent, each t alike."""

    def make(self, num_steps: int) -> TimeLaw:
        """`timesteps.uniform`."""
        return _without_memory(timesteps.uniform, num_steps)


@dataclasses.dataclass(frozen=True)
class Stratified(Times):
    """Spread evenly over the chain within each batch."""

    def check(self, config: Any) -> None:
        """The lattice of times has to fit into 30 bits."""
        num_steps, batch_size = config.schedule.num_steps, config.train.batch_size
        if batch_size * num_steps >= 2**30:
            raise ConfigError(
                f"train.batch_size is {batch_size}; it has to be below 2^30 / schedule.num_steps"
                f" = {2**30 // num_steps} where times are stratified"
            )

    def make(self, num_steps: int) -> TimeLaw:
        """`timesteps.stratified`."""
        return _without_memory(timesteps.stratified, num_steps)


@dataclasses.dataclass(frozen=True)
class Importance(Times):
    """More often where losses have been large; their history is part of the state."""

    history: Annotated[int, COUNT] = 10
    """Losses that are remembered for each t."""
    uniform_share: Annotated[float, FRACTION] = 1e-3
    """Of the draws, that is uniform all the same."""

    def make(self, num_steps: int) -> TimeLaw:
        """`timesteps.importance` by a `timesteps.loss_history`."""
        return TimeLaw(
            draw=lambda key, batch, memory: timesteps.importance(
                key, batch, timesteps.probabilities(memory, uniform_share=self.uniform_share)
            ),
            remember=timesteps.update_history,
            initial_memory=lambda: timesteps.loss_history(num_steps, self.history),
        )

    def held_out(self) -> Times:
        """Stratified."""
        return Stratified()


def _without_memory(draw: Callable[[Array, int, int], Array], num_steps: int) -> TimeLaw:
    def times(key: Array, batch: int, memory: Any) -> tuple[Array, Array]:
        return draw(key, batch, num_steps), jnp.ones(batch, jnp.float32)

    return TimeLaw(times)
