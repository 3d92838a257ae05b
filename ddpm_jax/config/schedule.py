"""How noise grows over the chain: the schedules of `ddpm_jax.schedules`."""

import abc
import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import tyro

from ddpm_jax import schedules, training
from ddpm_jax.config.base import COUNT, Affects, Bound, ConfigError, Member, check_made

__all__ = [
    "ConstantBeta",
    "Cosine",
    "FromBetas",
    "LearnedLogSNR",
    "Linear",
    "LinearLogSNR",
    "Quadratic",
    "RectifiedFlow",
    "Schedule",
    "Sigmoid",
    "SubVariancePreserving",
    "VarianceExploding",
    "VariancePreserving",
    "make_schedule",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule(Member):
    """How noise grows over a chain of T steps, and two changes that fit any schedule."""

    affects: ClassVar[Affects] = Affects.MODEL
    num_steps: Annotated[int, Bound(lambda value: value <= 1_000_000, "at most 1,000,000")] = 1000
    """T, the number of steps of the chain."""
    shift_resolution: Annotated[int | None, COUNT] = None
    """Side of the images in pixels. A schedule that preserves variance is shifted to more noise for
    images larger than `shift_reference` (Hoogeboom et al. 2023). None: no shift."""
    shift_reference: Annotated[int, COUNT] = 64
    """Side of the images for which the schedule needs no shift, in pixels."""
    zero_terminal_snr: bool = False
    """Change the schedule so that no signal is left at t = T - 1 (Lin et al. 2024). The network
    cannot predict "eps" or "score" then."""

    @abc.abstractmethod
    def make(self) -> schedules.Schedule:
        """The schedule, without the shift and without `zero_terminal_snr`.

        Returns:
            The tables of the chain, see `ddpm_jax.schedules.Schedule`.

        Raises:
            ValueError: the fields make no schedule. The caller turns it into a ConfigError.
        """

    def learned(self) -> training.LearnedSchedule | None:
        """The schedule as a function of parameters that are trained with the network.

        Returns:
            The functions; None (the default) for a schedule that stays as `make` returns it.
        """
        return None


@dataclasses.dataclass(frozen=True)
class Linear(Schedule):
    """beta grows linearly (Ho et al. 2020)."""

    beta_min: float = 1e-4
    """beta at t = 0, in (0, 1)."""
    beta_max: float = 0.02
    """beta at t = T - 1, in (0, 1)."""

    def make(self) -> schedules.Schedule:
        """`schedules.linear`."""
        return schedules.linear(self.num_steps, self.beta_min, self.beta_max)


@dataclasses.dataclass(frozen=True)
class Quadratic(Schedule):
    """sqrt(beta) grows linearly (Stable Diffusion)."""

    beta_min: float = 1e-4
    """beta at t = 0, in (0, 1)."""
    beta_max: float = 0.02
    """beta at t = T - 1, in (0, 1)."""

    def make(self) -> schedules.Schedule:
        """`schedules.quadratic`."""
        return schedules.quadratic(self.num_steps, self.beta_min, self.beta_max)


@dataclasses.dataclass(frozen=True)
class ConstantBeta(Schedule):
    """The same beta at each step."""

    beta: float = 0.02
    """beta at each t, in (0, 1)."""

    def make(self) -> schedules.Schedule:
        """`schedules.constant`."""
        return schedules.constant(self.num_steps, self.beta)


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """alpha_bar is a squared cosine (Nichol & Dhariwal 2021)."""

    offset: float = 0.008
    """Shift of the cosine, as a share of the chain. Without it the first betas are close to 0."""
    max_beta: float = 0.999
    """Largest beta; larger ones are cut to it. In (0, 1)."""

    def make(self) -> schedules.Schedule:
        """`schedules.cosine`."""
        return schedules.cosine(self.num_steps, self.offset, self.max_beta)


@dataclasses.dataclass(frozen=True)
class Sigmoid(Schedule):
    """alpha_bar is a sigmoid (Jabri et al. 2023)."""

    start: float = -3.0
    """Argument of the sigmoid where the chain begins, below `end`."""
    end: float = 3.0
    """Argument of the sigmoid where the chain ends."""
    tau: float = 1.0
    """Temperature, above 0. alpha_bar falls more evenly if it is large."""
    max_beta: float = 0.999
    """Largest beta; larger ones are cut to it. In (0, 1)."""

    def make(self) -> schedules.Schedule:
        """`schedules.sigmoid`."""
        return schedules.sigmoid(self.num_steps, self.start, self.end, self.tau, self.max_beta)


@dataclasses.dataclass(frozen=True)
class LinearLogSNR(Schedule):
    """log SNR falls linearly."""

    log_snr_max: float = 7.0
    """log SNR at t = 0."""
    log_snr_min: float = -8.0
    """log SNR at t = T - 1."""

    def make(self) -> schedules.Schedule:
        """`schedules.linear_log_snr`."""
        return schedules.linear_log_snr(self.num_steps, self.log_snr_max, self.log_snr_min)


@dataclasses.dataclass(frozen=True)
class LearnedLogSNR(Schedule):
    """log SNR begins linear and is trained with the network (Kingma et al. 2021).

    What lies between the ends minimizes the variance of the loss, learned ends the loss itself. The
    network gets times that are no whole numbers: t if log SNR were still linear.
    """

    log_snr_max: float = 7.0
    """log SNR at t = 0; before the first step, if the ends are learned."""
    log_snr_min: float = -8.0
    """log SNR at t = T - 1; before the first step, if the ends are learned."""
    width: Annotated[int, Bound(lambda value: value >= 8, "8 or more")] = 32
    """Number of sigmoids that log SNR is made of, beside a straight line."""
    endpoints: Literal["fixed", "learned"] = "fixed"
    """Whether `log_snr_max` and `log_snr_min` stay or are learned."""

    def check(self, config: Any) -> None:
        """Checks that the loss is the bound, and that the rest takes a schedule that moves."""
        if self.shift_resolution is not None or self.zero_terminal_snr:
            name = "zero_terminal_snr" if self.zero_terminal_snr else "shift_resolution"
            raise ConfigError(
                f"schedule.{name} is {getattr(self, name)}; a learned schedule has its ends from"
                " log_snr_max and log_snr_min, so leave it out"
            )
        refused = {
            "objective": (not config.objective.is_bound, "whose loss is not the bound; take ELBO"),
            "times": (
                config.times.reads_noise_levels,
                "which is made of noise levels before training; take Stratified",
            ),
            "process": (
                not config.process.takes_traced_schedule,
                "whose tables are made before training; take Isotropic",
            ),
            "network": (
                not config.network.takes_any_time,
                "which takes the times of a fixed schedule alone; take the network inside it",
            ),
        }
        for field, (refuses, why) in refused.items():
            if refuses:
                name = type(getattr(config, field)).__name__
                raise ConfigError(f"schedule is learned, and {field} is {name}, {why}")

    def make(self) -> schedules.Schedule:
        """The schedule before the first step: `schedules.from_monotone` of `monotone`."""
        ends = schedules.Endpoints(self.log_snr_max, self.log_snr_min)
        return schedules.from_monotone(schedules.monotone(self.width), ends, self.num_steps)

    def learned(self) -> training.LearnedSchedule:
        """`training.learned_log_snr`."""
        return training.learned_log_snr(
            self.num_steps,
            self.log_snr_max,
            self.log_snr_min,
            width=self.width,
            endpoints=self.endpoints,
        )


@dataclasses.dataclass(frozen=True)
class VariancePreserving(Schedule):
    """The variance-preserving SDE at T times (Song et al. 2021)."""

    beta_min: float = 0.1
    """Rate at the data, above 0."""
    beta_max: float = 20.0
    """Rate at the prior, at least `beta_min`."""

    def make(self) -> schedules.Schedule:
        """`schedules.variance_preserving`."""
        return schedules.variance_preserving(self.num_steps, self.beta_min, self.beta_max)


@dataclasses.dataclass(frozen=True)
class SubVariancePreserving(Schedule):
    """The sub-VP SDE at T times (Song et al. 2021)."""

    beta_min: float = 0.1
    """Rate at the data, above 0."""
    beta_max: float = 20.0
    """Rate at the prior, at least `beta_min`."""

    def make(self) -> schedules.Schedule:
        """`schedules.sub_variance_preserving`."""
        return schedules.sub_variance_preserving(self.num_steps, self.beta_min, self.beta_max)


@dataclasses.dataclass(frozen=True)
class VarianceExploding(Schedule):
    """The signal stays, and noise is added up to `sigma_max` (Karras et al. 2022).

    The network's input grows with the noise; wrap the network in `EDM`, which scales it.
    """

    sigma_min: float = 0.002
    """Noise level at t = 0, above 0."""
    sigma_max: float = 80.0
    """Noise level at t = T - 1, above `sigma_min`."""
    rho: float = 7.0
    """Above 0. The larger it is, the more steps are at low noise; inf is even in log sigma."""

    def make(self) -> schedules.Schedule:
        """`schedules.variance_exploding`."""
        return schedules.variance_exploding(
            self.num_steps, self.sigma_min, self.sigma_max, self.rho
        )


@dataclasses.dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """Straight lines from data to noise; no signal is left at T - 1 (Liu et al. 2023)."""

    shift: float = 1.0
    """Factor of the noise level, above 0. For images of m pixels in place of n, sqrt(m / n) (Esser
    et al. 2024)."""

    def make(self) -> schedules.Schedule:
        """`schedules.rectified_flow`."""
        return schedules.rectified_flow(self.num_steps, self.shift)


@dataclasses.dataclass(frozen=True)
class FromBetas(Schedule):
    """A list of betas, one for each step, as other programs store them."""

    betas: Annotated[tuple[float, ...], tyro.conf.arg(help_behavior_hint="(one for each step)")]
    """beta at each t from 0 on, in (0, 1); the last may be 1."""
    num_steps: Annotated[int, Bound(lambda value: 0 <= value <= 1_000_000, "0 to 1,000,000")] = (
        dataclasses.field(default=0, kw_only=True)
    )
    """T. Leave it at 0: it becomes the number of betas."""

    def __post_init__(self) -> None:
        """Counts the betas."""
        if self.num_steps == 0 and isinstance(self.betas, tuple | list):
            object.__setattr__(self, "num_steps", len(self.betas))

    def make(self) -> schedules.Schedule:
        """`schedules.from_betas`."""
        if self.num_steps != len(self.betas):
            raise ValueError(
                f"num_steps is {self.num_steps}, and betas has {len(self.betas)} numbers; leave"
                " num_steps out, or set it to that number"
            )
        return schedules.from_betas(np.array(self.betas, np.float64))


def make_schedule(schedule: Schedule) -> schedules.Schedule:
    """The schedule of a member, with its shift and `zero_terminal_snr`.

    Args:
        schedule: the member.

    Returns:
        The tables of the chain.

    Raises:
        ConfigError: T is below 2, a beta is outside (0, 1), log SNR does not fall, or the member's
            `make` returned no schedule.
    """
    try:
        made = schedule.make()
    except ValueError as error:
        raise ConfigError(f"schedule: {error}") from error
    check_made("schedule", schedule, made, schedules.Schedule)
    try:
        if schedule.shift_resolution is not None:
            made = schedules.shifted(
                made, resolution=schedule.shift_resolution, reference=schedule.shift_reference
            )
        return schedules.zero_terminal_snr(made) if schedule.zero_terminal_snr else made
    except ValueError as error:
        raise ConfigError(f"schedule: {error}") from error
