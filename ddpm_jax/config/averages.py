"""Moving averages of the parameters."""

import abc
import dataclasses
import functools
from typing import Annotated, ClassVar, NamedTuple

from ddpm_jax.config.base import COUNT, Affects, Bound, Member
from ddpm_jax.training import ema
from ddpm_jax.training.step import Decay

__all__ = ["EMA", "Averages", "PostHocEMA", "Snapshots"]


class Snapshots(NamedTuple):
    """Averages that training stores at intervals, so that other averages can be made afterwards."""

    widths: tuple[float, ...]
    """Relative width sigma_rel of each average, see `ema.gamma_of`."""
    every: int
    """Steps between two stored sets. No set is deleted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Averages(Member):
    """Averages with constant decays. Evaluation and sampling use the first one."""

    affects: ClassVar[Affects] = Affects.TRAINING
    decays: Annotated[
        tuple[float, ...],
        Bound(
            lambda values: len(values) > 0 and all(0.0 <= value < 1.0 for value in values),
            "one or more numbers in [0, 1)",
        ),
    ] = (0.9999,)
    """Decay of each average late in training, in [0, 1). Lower it for short runs: an average covers
    about 1 / (1 - decay) steps."""
    warmup: bool = True
    """Use smaller decays early in training, see `ema.decay_at`."""

    @abc.abstractmethod
    def make(self) -> tuple[Decay, ...]:
        """The decay of each average as a function of the steps done.

        Returns:
            One function `steps done -> decay` for each average, those of `decays` first.
        """

    @property
    def snapshots(self) -> Snapshots | None:
        """The averages after `decays` that are stored; None if only checkpoints are stored."""
        return None


@dataclasses.dataclass(frozen=True)
class EMA(Averages):
    """Exponential moving averages."""

    def make(self) -> tuple[Decay, ...]:
        """`ema.decay_at`, or `ema.constant_decay_at`, for each of `decays`."""
        decay_at = ema.decay_at if self.warmup else ema.constant_decay_at
        return tuple(functools.partial(decay_at, decay=decay) for decay in self.decays)


@dataclasses.dataclass(frozen=True)
class PostHocEMA(EMA):
    """EMA, and power-function averages for averages of any width after training (Karras 2024)."""

    widths: Annotated[
        tuple[float, ...],
        Bound(
            lambda values: len(values) > 0 and all(0.0 < value <= 12**-0.5 for value in values),
            "one or more widths sigma_rel in (0, 0.2886]",
        ),
    ] = (0.05, 0.1)
    """Relative widths sigma_rel of the stored averages, in (0, 0.2886]; two are usual."""
    every: Annotated[int, COUNT, Affects.REPORTS] = 10_000
    """Steps between two stored sets of averages. No set is deleted."""

    def make(self) -> tuple[Decay, ...]:
        """The decays of `EMA`, then `ema.power_decay_at` for each of `widths`."""
        return (
            *super().make(),
            *(
                functools.partial(ema.power_decay_at, gamma=ema.gamma_of(width))
                for width in self.widths
            ),
        )

    @property
    def snapshots(self) -> Snapshots:
        """`widths` and `every`."""
        return Snapshots(self.widths, self.every)
