"""The loss that training minimizes, and the times t at which it is computed."""

import abc
import dataclasses
import typing
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ddpm_jax import losses, timesteps
from ddpm_jax.config.base import COUNT, FRACTION, POSITIVE, Affects, ConfigError, Member
from ddpm_jax.processes import Modal
from ddpm_jax.training.objective import LossTerms, TimeLaw

__all__ = [
    "ELBO",
    "P2",
    "Hybrid",
    "Importance",
    "LogNormal",
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
    """The loss of each example, from the output of the network at t."""

    affects: ClassVar[Affects] = Affects.TRAINING
    teaches_variance: ClassVar[bool] = False
    """Whether the loss trains the variance of a network with `variance` "learned_range"."""
    needs_variance: ClassVar[bool] = False
    """Whether the loss works only with such a network."""
    is_bound: ClassVar[bool] = False
    """Whether the mean of the loss is minus the ELBO, which a learned schedule needs."""

    @abc.abstractmethod
    def make(self) -> Callable[[LossTerms], Array]:
        """The loss as a function.

        Returns:
            A pure function `terms -> loss [batch]`. The caller multiplies by the weight of t.
        """

    def check(self, config: Any) -> None:
        """Checks that the objective fits the variance of the network."""
        name, learned = type(self).__name__, config.network.variance == "learned_range"
        if learned and not self.teaches_variance:
            raise ConfigError(
                f"objective is {name}, which does not train the variance; with network.variance"
                " 'learned_range' it has to be one that does, such as Hybrid"
            )
        if self.needs_variance and not learned:
            raise ConfigError(
                f"objective is {name} and network.variance is {config.network.variance!r}; it has"
                " to be 'learned_range'"
            )


@dataclasses.dataclass(frozen=True)
class Simple(Objective):
    """Mean squared error of the prediction (Ho et al. 2020, equation 14)."""

    def make(self) -> Callable[[LossTerms], Array]:
        """`losses.simple_loss`."""
        return _of_prediction(losses.simple_loss)


@dataclasses.dataclass(frozen=True)
class ELBO(Objective):
    """The negative ELBO in bits per dimension."""

    teaches_variance: ClassVar[bool] = True
    is_bound: ClassVar[bool] = True

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
    """The simple loss plus a small share of the ELBO, which trains the variance (Nichol 2021)."""

    teaches_variance: ClassVar[bool] = True
    needs_variance: ClassVar[bool] = True
    vlb_weight: Annotated[float, FRACTION] = 1e-3
    """Factor of the ELBO in the sum, in [0, 1)."""

    def make(self) -> Callable[[LossTerms], Array]:
        """`losses.hybrid_loss`."""
        return lambda terms: losses.hybrid_loss(
            terms.process,
            terms.prediction,
            typing.cast("Array", terms.interpolation),  # not None, see `check`
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
    """Largest weight. Lower values give large noise more weight."""

    def make(self) -> Callable[[LossTerms], Array]:
        """`losses.weighted_loss` with `losses.min_snr`."""
        return _of_prediction(losses.weighted_loss, weighting=losses.min_snr(self.gamma))


@dataclasses.dataclass(frozen=True)
class P2(Objective):
    """Squared error of x0, weighted by SNR / (k + SNR)^gamma (Choi et al. 2022)."""

    k: float = 1.0
    """SNR around which the weight bends."""
    gamma: float = 1.0
    """Exponent. 0 weights as the simple loss of eps does; higher values give less weight to times
    with little noise."""

    def make(self) -> Callable[[LossTerms], Array]:
        """`losses.weighted_loss` with `losses.p2`."""
        return _of_prediction(losses.weighted_loss, weighting=losses.p2(self.k, self.gamma))


@dataclasses.dataclass(frozen=True)
class TruncatedSNR(Objective):
    """Squared error of x0, weighted by max(SNR, minimum) (Salimans & Ho 2022)."""

    minimum: float = 1.0
    """Smallest weight."""

    def make(self) -> Callable[[LossTerms], Array]:
        """`losses.weighted_loss` with `losses.truncated_snr`."""
        weighting = losses.truncated_snr(self.minimum)
        return _of_prediction(losses.weighted_loss, weighting=weighting)


def _of_prediction(loss: Callable[..., Array], **kwargs: Any) -> Callable[[LossTerms], Array]:
    """A loss that uses only the prediction, as a function of the terms."""
    return lambda terms: loss(
        *(terms.process, terms.prediction, terms.x0, terms.t, terms.eps),
        predicts=terms.predicts,
        **kwargs,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times(Member):
    """The distribution from which training draws t; see `ddpm_jax.timesteps`."""

    affects: ClassVar[Affects] = Affects.TRAINING
    reads_noise_levels: ClassVar[bool] = False
    """Whether the law follows from the noise levels of the chain, not from their number alone."""

    @abc.abstractmethod
    def make(self, process: Modal) -> TimeLaw:
        """The distribution for one chain.

        Args:
            process: the forward process, whose `num_steps` is T.

        Returns:
            The functions that draw t and its weight, see `ddpm_jax.training.TimeLaw`.

        Raises:
            ValueError: the fields make no distribution of this chain. The caller turns it into a
                ConfigError.
        """

    def held_out(self) -> "Times":
        """The distribution for held-out losses.

        Returns:
            A member that does not depend on the losses of training; by default this one.
        """
        return self


@dataclasses.dataclass(frozen=True)
class Uniform(Times):
    """Independent times, each t with the same probability."""

    def make(self, process: Modal) -> TimeLaw:
        """`timesteps.uniform`."""
        return _without_memory(timesteps.uniform, process.num_steps)


@dataclasses.dataclass(frozen=True)
class Stratified(Times):
    """Times spread evenly over the chain within each batch; the loss then varies less."""

    def check(self, config: Any) -> None:
        """Checks that the lattice of times fits into 30 bits."""
        num_steps, batch_size = config.schedule.num_steps, config.train.batch_size
        if batch_size * num_steps >= 2**30:
            raise ConfigError(
                f"train.batch_size is {batch_size}; it has to be below 2^30 / schedule.num_steps"
                f" = {2**30 // num_steps} if times are stratified"
            )

    def make(self, process: Modal) -> TimeLaw:
        """`timesteps.stratified`."""
        return _without_memory(timesteps.stratified, process.num_steps)


@dataclasses.dataclass(frozen=True)
class Importance(Times):
    """Times with large losses more often (Nichol & Dhariwal 2021); weights keep the mean the same.

    The recent losses of each t are part of the training state.
    """

    history: Annotated[int, COUNT] = 10
    """Number of recent losses that are stored for each t."""
    uniform_share: Annotated[float, FRACTION] = 1e-3
    """Share of the draws that stays uniform, in [0, 1)."""

    def make(self, process: Modal) -> TimeLaw:
        """`timesteps.importance` with a `timesteps.loss_history`."""
        return TimeLaw(
            draw=lambda key, batch, memory: timesteps.importance(
                key, batch, timesteps.probabilities(memory, uniform_share=self.uniform_share)
            ),
            remember=timesteps.update_history,
            initial_memory=lambda: timesteps.loss_history(process.num_steps, self.history),
        )

    def held_out(self) -> Times:
        """Returns `Stratified()`."""
        return Stratified()


@dataclasses.dataclass(frozen=True)
class LogNormal(Times):
    """Times whose noise level b / a is log-normal (Karras et al. 2022).

    On rectified flow it is the logit-normal law of Stable Diffusion 3 (Esser et al. 2024).
    """

    reads_noise_levels: ClassVar[bool] = True
    mean: float = -1.2
    """Mean of ln(b / a), natural logarithm. EDM has -1.2, most runs of Esser et al. 0."""
    std: Annotated[float, POSITIVE] = 1.2
    """Standard deviation of ln(b / a). EDM has 1.2, Esser et al. 1."""
    reweighted: bool = False
    """Weight the loss by 1 / (T p(t)), so that its mean stays that of uniform times. False, as in
    the papers, gives likely times more weight in the loss."""

    def make(self, process: Modal) -> TimeLaw:
        """`timesteps.importance` with `timesteps.lognormal`."""
        p = timesteps.lognormal(process, self.mean, self.std)
        never = np.flatnonzero(np.asarray(p) == 0.0)
        if self.reweighted and never.size:
            raise ValueError(
                f"LogNormal with mean {self.mean:g} and std {self.std:g} never draws"
                f" t = {never[0]}, which no weight makes up for; choose a larger std, or"
                " reweighted False"
            )

        def draw(key: Array, batch: int, memory: Any) -> tuple[Array, Array]:
            t, weight = timesteps.importance(key, batch, p)
            return t, weight if self.reweighted else jnp.ones_like(weight)

        return TimeLaw(draw)


def _without_memory(draw: Callable[[Array, int, int], Array], num_steps: int) -> TimeLaw:
    def times(key: Array, batch: int, memory: Any) -> tuple[Array, Array]:
        return draw(key, batch, num_steps), jnp.ones(batch, jnp.float32)

    return TimeLaw(times)
