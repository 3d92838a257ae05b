"""The samplers, which draw images from a trained network; see `ddpm_jax.samplers`."""

import abc
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, NamedTuple

from jaxtyping import Array, Int

from ddpm_jax import samplers
from ddpm_jax.config.base import COUNT, NOT_NEGATIVE, POSITIVE, Affects, Bound, ConfigError, Member
from ddpm_jax.predictions import Predicts
from ddpm_jax.processes import Modal
from ddpm_jax.reverse import Variance
from ddpm_jax.samplers import Predict, Spacing, UniPCVariant

__all__ = [
    "DDIM",
    "Ancestral",
    "BoundModel",
    "DPMSolverPP",
    "DPMSolverPPSingle",
    "DynamicThreshold",
    "Heun",
    "Midpoint",
    "NoThreshold",
    "ProbabilityFlow",
    "Sampler",
    "StaticThreshold",
    "StochasticHeun",
    "Threshold",
    "UniPC",
]


class BoundModel(NamedTuple):
    """A trained network as a function of x_t and t: with its parameters, labels and guidance."""

    process: Modal
    """The forward process that the network was trained on."""
    predict: Predict
    """`(x_t, t) -> prediction`."""
    predict_pair: Predict
    """The same; `(x_t, t) -> (prediction, interpolation)` if the network learns the variance."""
    predicts: Predicts
    """What the network predicts, see `ddpm_jax.predictions`."""
    variance: Variance
    """Variance of p(x_{t-1} | x_t), see `ddpm_jax.reverse`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threshold(Member):
    """A function that limits x0_hat at each step, because images are in [-1, 1]."""

    affects: ClassVar[Affects] = Affects.REPORTS

    @abc.abstractmethod
    def make(self) -> samplers.Threshold | None:
        """The threshold as a function.

        Returns:
            `x0_hat -> x0_hat` of the same shape, or None for no threshold.
        """


@dataclasses.dataclass(frozen=True)
class StaticThreshold(Threshold):
    """Clips x0_hat to [-limit, limit]."""

    limit: Annotated[float, POSITIVE] = 1.0
    """Largest absolute value."""

    def make(self) -> samplers.Threshold | None:
        """`samplers.static_threshold`."""
        if self.limit == 1.0:
            return samplers.static_threshold
        return functools.partial(samplers.static_threshold, limit=self.limit)


@dataclasses.dataclass(frozen=True)
class DynamicThreshold(Threshold):
    """Scales x0_hat down to [-1, 1] by a quantile of its absolute values (Saharia et al. 2022)."""

    quantile: Annotated[float, Bound(lambda value: 0.0 < value <= 1.0, "in (0, 1]")] = 0.995
    """Quantile of the absolute values of an image, in (0, 1]; the image is divided by it if it is
    above 1."""
    maximum: Annotated[
        float | None, Bound(lambda value: value is None or value >= 1.0, "1 or more")
    ] = None
    """Largest divisor. None: no limit."""

    def make(self) -> samplers.Threshold | None:
        """`samplers.dynamic_threshold`."""
        return samplers.dynamic_threshold(self.quantile, self.maximum)


@dataclasses.dataclass(frozen=True)
class NoThreshold(Threshold):
    """Leaves x0_hat unchanged."""

    def make(self) -> samplers.Threshold | None:
        """Returns None."""
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler(Member):
    """A sampler, the times that it visits, and guidance by class."""

    affects: ClassVar[Affects] = Affects.REPORTS
    steps: Annotated[int | None, COUNT] = None
    """Number of steps, at most T. None: all T. Fewer steps are faster."""
    spacing: Spacing = "linspace"
    """Spread of the times, see `samplers.time_grid`."""
    rho: Annotated[float, POSITIVE] = 7.0
    """Exponent of the spacing "karras"."""
    guidance: float = 1.0
    """Scale of classifier-free guidance, of a network with classes. 0
    ignores the class, 1 is no guidance; above 1 images follow their class
    more closely, but vary less."""
    guidance_interval: tuple[int, int] | None = None
    """Smallest and largest network time with guidance. None: all times."""
    guidance_rescale: Annotated[float, Bound(lambda value: 0.0 <= value <= 1.0, "in [0, 1]")] = 0.0
    """Share, in [0, 1], by which a guided x0_hat gets the standard deviation of the conditional
    one. Raise it if guided images are too saturated."""
    threshold: Threshold = StaticThreshold()
    """Limit of x0_hat at each step."""

    @abc.abstractmethod
    def make(self, model: BoundModel) -> samplers.Sampler:
        """The sampler of one network.

        Args:
            model: the trained network.

        Returns:
            The sampler, see `ddpm_jax.samplers.Sampler`.
        """

    def guided(self, conditional: Predict, unconditional: Predict) -> Predict:
        """The guided prediction: `samplers.guidance.classifier_free` with the fields of guidance.

        Args:
            conditional: `(x_t, t) -> prediction` with the class.
            unconditional: the same without the class.

        Returns:
            `(x_t, t) -> prediction`.
        """
        return samplers.guidance.classifier_free(
            conditional,
            unconditional,
            scale=self.guidance,
            interval=self.guidance_interval,
            rescale=self.guidance_rescale,
        )

    def times(self, process: Modal) -> Int[Array, " steps"]:
        """The times that the sampler visits.

        Args:
            process: the forward process of the network.

        Returns:
            int32 `[steps]`, falling.
        """
        steps = self.steps or process.num_steps
        return samplers.time_grid(process, steps, self.spacing, rho=self.rho)

    def check(self, config: Any) -> None:
        """Checks that the chain has as many steps, and that a guided network has classes."""
        num_steps = config.schedule.num_steps
        if (self.steps or 1) > num_steps:
            raise ConfigError(
                f"sampler.steps is {self.steps}; it has to be at most schedule.num_steps,"
                f" {num_steps}"
            )
        if config.network.classes == 0 and self.guidance != 1.0:
            raise ConfigError(
                f"sampler.guidance is {self.guidance}; it has to be 1 if network.classes is 0"
            )


@dataclasses.dataclass(frozen=True)
class Ancestral(Sampler):
    """The reverse chain of DDPM (Ho et al. 2020, algorithm 2)."""

    def make(self, model: BoundModel) -> samplers.Sampler:
        """`samplers.ancestral`, the only sampler that uses a learned variance."""
        return samplers.ancestral(
            model.process,
            model.predict_pair,
            predicts=model.predicts,
            variance=model.variance,
            threshold=self.threshold.make(),
        )


@dataclasses.dataclass(frozen=True)
class DDIM(Sampler):
    """DDIM, which is deterministic at eta = 0 (Song et al. 2021)."""

    eta: Annotated[float, NOT_NEGATIVE] = 0.0
    """Noise of each step, as a multiple of the posterior's standard deviation. 0 is deterministic,
    1 is as noisy as the reverse chain."""
    noise_after_threshold: bool = True
    """Compute eps_hat again from x0_hat after the threshold. Otherwise the network's own eps_hat is
    used."""

    def make(self, model: BoundModel) -> samplers.Sampler:
        """`samplers.ddim`."""
        after = self.noise_after_threshold
        return _make(samplers.ddim, model, self, eta=self.eta, noise_after_threshold=after)


@dataclasses.dataclass(frozen=True)
class DPMSolverPP(Sampler):
    """DPM-Solver++ (Lu et al. 2022); good at 10 to 50 steps."""

    order: Annotated[int, Bound(lambda value: 1 <= value <= 3, "1 to 3")] = 2
    """Order of the solver, 1 to 3. Order 1 without noise is DDIM."""
    stochastic: bool = False
    """Solve the stochastic differential equation, which adds noise at each step."""

    def make(self, model: BoundModel) -> samplers.Sampler:
        """`samplers.dpm_solver_pp`."""
        solver = samplers.dpm_solver_pp
        return _make(solver, model, self, order=self.order, stochastic=self.stochastic)


@dataclasses.dataclass(frozen=True)
class DPMSolverPPSingle(Sampler):
    """Single-step DPM-Solver++ (Lu et al. 2022), in blocks of 2 or 3 steps."""

    order: Annotated[int, Bound(lambda value: value in (2, 3), "2 or 3")] = 2
    """Order of the solver and length of a block, 2 or 3."""

    def make(self, model: BoundModel) -> samplers.Sampler:
        """`samplers.dpm_solver_pp_single`."""
        return _make(samplers.dpm_solver_pp_single, model, self, order=self.order)


@dataclasses.dataclass(frozen=True)
class UniPC(Sampler):
    """UniPC (Zhao et al. 2023), a predictor and a corrector; good at 5 to 50 steps."""

    order: Annotated[int, Bound(lambda value: 1 <= value <= 3, "1 to 3")] = 3
    """Order of the predictor, 1 to 3."""
    variant: UniPCVariant = "bh2"
    """B(h) of the paper: "bh1" is h, "bh2" is exp(h) - 1."""
    corrector: bool = True
    """Correct each step once x0_hat is known at its end, which adds one order."""

    def make(self, model: BoundModel) -> samplers.Sampler:
        """`samplers.unipc`."""
        options = {"order": self.order, "variant": self.variant, "corrector": self.corrector}
        return _make(samplers.unipc, model, self, **options)


@dataclasses.dataclass(frozen=True)
class Midpoint(Sampler):
    """The midpoint rule in the time of rectified flow, in blocks of two steps."""

    def make(self, model: BoundModel) -> samplers.Sampler:
        """`samplers.midpoint`."""
        return _make(samplers.midpoint, model, self)


@dataclasses.dataclass(frozen=True)
class Heun(Sampler):
    """Heun's method on the probability flow; two network calls a step (Karras et al. 2022)."""

    def make(self, model: BoundModel) -> samplers.Sampler:
        """`samplers.heun`."""
        return _make(samplers.heun, model, self)


@dataclasses.dataclass(frozen=True)
class StochasticHeun(Sampler):
    """Heun's method with noise added before each step; two network calls a step.

    The defaults are the paper's for ImageNet at 64x64 (Karras et al. 2022, table 5).
    """

    churn: Annotated[float, NOT_NEGATIVE] = 40.0
    """S_churn: before each step, the noise level rises by churn / steps of itself, at most to
    sqrt(2) times. 0 is Heun's method without noise."""
    sigma_min: Annotated[float, NOT_NEGATIVE] = 0.05
    """S_min: lowest noise level that is raised. Levels are those of the noise in units of the
    signal."""
    sigma_max: Annotated[
        float | None, Bound(lambda value: value is None or value >= 0.0, "0 or more")
    ] = 50.0
    """S_max: highest noise level that is raised. None: no limit."""
    noise_scale: Annotated[float, POSITIVE] = 1.003
    """S_noise: factor on the standard deviation of the noise that is added."""

    def check(self, config: Any) -> None:
        """Checks in addition that the noise levels rise."""
        super().check(config)
        if self.sigma_max is not None and self.sigma_max < self.sigma_min:
            raise ConfigError(
                f"sampler.sigma_max is {self.sigma_max}; it has to be at least sampler.sigma_min,"
                f" {self.sigma_min}"
            )

    def make(self, model: BoundModel) -> samplers.Sampler:
        """`samplers.stochastic_heun`."""
        steps = self.steps or model.process.num_steps
        return _make(
            samplers.stochastic_heun,
            model,
            self,
            gamma=min(self.churn / steps, math.sqrt(2.0) - 1.0),
            sigma_min=self.sigma_min,
            sigma_max=math.inf if self.sigma_max is None else self.sigma_max,
            noise_scale=self.noise_scale,
        )


@dataclasses.dataclass(frozen=True)
class ProbabilityFlow(Sampler):
    """The probability flow by a linear multistep method."""

    order: Annotated[int, Bound(lambda value: 1 <= value <= 4, "1 to 4")] = 4
    """Order of the method, 1 to 4."""

    def make(self, model: BoundModel) -> samplers.Sampler:
        """`samplers.probability_flow`."""
        return _make(samplers.probability_flow, model, self, order=self.order)


def _make(
    sampler: Callable[..., samplers.Sampler], model: BoundModel, member: Sampler, **kwargs: Any
) -> samplers.Sampler:
    """A sampler that uses only the prediction."""
    return sampler(
        model.process,
        model.predict,
        predicts=model.predicts,
        threshold=member.threshold.make(),
        **kwargs,
    )
