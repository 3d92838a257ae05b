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
    """Averages that are stored again and again, so that others can be made of them later."""

    widths: tuple[float, ...]
    """sigma_rel of each, see `ema.gamma_of`."""
    every: int
    """Steps from one stored set to the next; all are kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Averages(Member):
    """Averages by constant decays; the first is evaluated and drawn from."""

    affects: ClassVar[Affects] = Affects.TRAINING
    decays: Annotated[
        tuple[float, ...],
        Bound(
            lambda values: len(values) > 0 and all(0.0 <= value < 1.0 for value in values),
            "one or more numbers in [0, 1)",
        ),
    ] = (0.9999,)
    """Late in training."""
    warmup: bool = True
    """Early averages decay faster, see `ema.decay_at`."""

    @abc.abstractmethod
    def make(self) -> tuple[Decay, ...]:
        """The decay of each average as a function of the steps done, `decays` first."""

    @property
    def snapshots(self) -> Snapshots | None:
        """Of the averages after `decays`; None where nothing is stored but checkpoints."""
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
    """Power-function averages, too, of which others are made after training (Karras 2024)."""

    widths: Annotated[
        tuple[float, ...],
        Bound(
            lambda values: len(values) > 0 and all(0.0 < value <= 12**-0.5 for value in values),
            "one or more widths sigma_rel in (0, 0.2886]",
        ),
    ] = (0.05, 0.1)
    """sigma_rel of the averages that are stored, two as a rule."""
    every: Annotated[int, COUNT, Affects.REPORTS] = 10_000
    """Steps from one stored set of them to the next; all are kept."""

    def make(self) -> tuple[Decay, ...]:
        """Those of `EMA`, and `ema.power_decay_at` for each of `widths`."""
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
