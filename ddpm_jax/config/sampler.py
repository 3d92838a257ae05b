"""How images are drawn from a trained network: the samplers of `ddpm_jax.samplers`."""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, NamedTuple

from jaxtyping import Array, Int

from ddpm_jax import samplers
from ddpm_jax.config.base import COUNT, NOT_NEGATIVE, POSITIVE, Affects, Bound, ConfigError, Member
from ddpm_jax.forward import Predicts
from ddpm_jax.processes import Modal
from ddpm_jax.reverse import Variance
from ddpm_jax.samplers import Predict, Spacing

__all__ = [
    "DDIM",
    "Ancestral",
    "BoundModel",
    "DPMSolverPP",
    "DynamicThreshold",
    "Heun",
    "NoThreshold",
    "ProbabilityFlow",
    "Sampler",
    "StaticThreshold",
    "Threshold",
]


class BoundModel(NamedTuple):
    """A trained network with its parameters, labels and guidance."""

    process: Modal
    predict: Predict
    """`(x_t, t) -> prediction`."""
    predict_pair: Predict
    """The same, or `-> (prediction, interpolation)` of a network with a learned variance."""
    predicts: Predicts
    variance: Variance


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threshold(Member):
    """What keeps x0_hat in [-1, 1] at each step."""

    affects: ClassVar[Affects] = Affects.REPORTS

    @abc.abstractmethod
    def make(self) -> samplers.Threshold | None:
        """`x0_hat -> x0_hat`, or None."""


@dataclasses.dataclass(frozen=True)
class StaticThreshold(Threshold):
    """Clips to [-limit, limit]."""

    limit: Annotated[float, POSITIVE] = 1.0

    def make(self) -> samplers.Threshold | None:
        """`samplers.static_threshold`."""
        if self.limit == 1.0:
            return samplers.static_threshold
        return functools.partial(samplers.static_threshold, limit=self.limit)


@dataclasses.dataclass(frozen=True)
class DynamicThreshold(Threshold):
    """Scales an image into [-1, 1] where more than a quantile is outside (Saharia et al. 2022)."""

    quantile: Annotated[float, Bound(lambda value: 0.0 < value <= 1.0, "in (0, 1]")] = 0.995
    maximum: Annotated[
        float | None, Bound(lambda value: value is None or value >= 1.0, "1 or more")
    ] = None
    """Of what an image is divided by; None for no maximum."""

    def make(self) -> samplers.Threshold | None:
        """`samplers.dynamic_threshold`."""
        return samplers.dynamic_threshold(self.quantile, self.maximum)


@dataclasses.dataclass(frozen=True)
class NoThreshold(Threshold):
    """Leaves x0_hat as it is."""

    def make(self) -> samplers.Threshold | None:
        """None."""
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler(Member):
    """A sampler, the times that it visits, and guidance."""

    affects: ClassVar[Affects] = Affects.REPORTS
    steps: Annotated[int | None, COUNT] = None
    """How many; by default all T."""
    spacing: Spacing = "linspace"
    """How they are spread over the chain, see `ddpm_jax.samplers.time_grid`."""
    guidance: float = 1.0
    """Of a network with classes: 0 leaves them out, 1 is the network as it is, more is guided."""
    guidance_interval: tuple[int, int] | None = None
    """First and last network time that is guided; by default all."""
    guidance_rescale: Annotated[float, Bound(lambda value: 0.0 <= value <= 1.0, "in [0, 1]")] = 0.0
    """How far a guided x0_hat gets the standard deviation of the conditional one back."""
    threshold: Threshold = StaticThreshold()
    """What keeps x0_hat in [-1, 1]."""

    @abc.abstractmethod
    def make(self, model: BoundModel) -> samplers.Sampler:
        """The sampler of one network."""

    def guided(self, conditional: Predict, unconditional: Predict) -> Predict:
        """`samplers.guidance.classifier_free` with these fields."""
        return samplers.guidance.classifier_free(
            conditional,
            unconditional,
            scale=self.guidance,
            interval=self.guidance_interval,
            rescale=self.guidance_rescale,
        )

    def times(self, process: Modal) -> Int[Array, " steps"]:
        """The times that are visited, falling."""
        return samplers.time_grid(process, self.steps or process.num_steps, self.spacing)

    def check(self, config: Any) -> None:
        """As many steps as the chain has at most; guidance where there are classes."""
        num_steps = config.schedule.num_steps
        if (self.steps or 1) > num_steps:
            raise ConfigError(
                f"sampler.steps is {self.steps}; it has to be at most schedule.num_steps,"
                f" {num_steps}"
            )
        if config.network.classes == 0 and self.guidance != 1.0:
            raise ConfigError(
                f"sampler.guidance is {self.guidance}; it has to be 1 where network.classes is 0"
            )


@dataclasses.dataclass(frozen=True)
class Ancestral(Sampler):
    """The reverse chain itself (Ho et al. 2020, algorithm 2)."""

    def make(self, model: BoundModel) -> samplers.Sampler:
        """`samplers.ancestral`, the one that has a use for a learned variance."""
        return samplers.ancestral(
            model.process,
            model.predict_pair,
            predicts=model.predicts,
            variance=model.variance,
            threshold=self.threshold.make(),
        )


@dataclasses.dataclass(frozen=True)
class DDIM(Sampler):
    """Deterministic at eta = 0, with noise up to the chain's own at 1 (Song et al. 2021)."""

    eta: Annotated[float, NOT_NEGATIVE] = 0.0
    """Noise of each step, in units of the posterior's deviation."""
    noise_after_threshold: bool = True
    """The noise agrees with x0_hat after its threshold; otherwise it is the predicted one."""

    def make(self, model: BoundModel) -> samplers.Sampler:
        """`samplers.ddim`."""
        after = self.noise_after_threshold
        return _make(samplers.ddim, model, self, eta=self.eta, noise_after_threshold=after)


@dataclasses.dataclass(frozen=True)
class DPMSolverPP(Sampler):
    """DPM-Solver++ (Lu et al. 2022)."""

    order: Annotated[int, Bound(lambda value: value in (1, 2), "1 or 2")] = 2
    stochastic: bool = False
    """The SDE's version."""

    def make(self, model: BoundModel) -> samplers.Sampler:
        """`samplers.dpm_solver_pp`."""
        solver = samplers.dpm_solver_pp
        return _make(solver, model, self, order=self.order, stochastic=self.stochastic)


@dataclasses.dataclass(frozen=True)
class Heun(Sampler):
    """Heun's method on the probability flow (Karras et al. 2022)."""

    def make(self, model: BoundModel) -> samplers.Sampler:
        """`samplers.heun`."""
        return _make(samplers.heun, model, self)


@dataclasses.dataclass(frozen=True)
class ProbabilityFlow(Sampler):
    """The probability flow by a linear multistep method."""

    order: Annotated[int, Bound(lambda value: 1 <= value <= 4, "1 to 4")] = 4

    def make(self, model: BoundModel) -> samplers.Sampler:
        """`samplers.probability_flow`."""
        return _make(samplers.probability_flow, model, self, order=self.order)


def _make(
    sampler: Callable[..., samplers.Sampler], model: BoundModel, member: Sampler, **kwargs: Any
) -> samplers.Sampler:
    """One that uses the prediction alone."""
    return sampler(
        model.process,
        model.predict,
        predicts=model.predicts,
        threshold=member.threshold.make(),
        **kwargs,
    )
