r"""The forward processes: how the noise of a schedule acts on each frequency of an image.

Cosine modes of images `[height, width, channel]` have the frequencies w = pi (i / height,
j / width). Noise of pixels (x, y) apart that is correlated by rho^(|x| + |y|) has the spectrum

    lambda(w) = f(w_1) f(w_2)        f(w) = (1 - rho^2) / (1 - 2 rho cos w + rho^2)

that of an autoregression in each direction; in cosine modes the borders mirror it. It is divided by
its mean over the modes, so that noise has the variance that the schedule says in the mean over the
pixels, for any rho.
"""

import abc
import dataclasses
import math
from typing import Annotated, Any, ClassVar

import numpy as np

from ddpm_jax import bases, processes
from ddpm_jax.config.base import Affects, Bound, ConfigError, Member, check_made
from ddpm_jax.config.schedule import Schedule, make_schedule
from ddpm_jax.data import ImageSet, in_batches, to_model_range
from ddpm_jax.processes import Modal
from ddpm_jax.schedules import Schedule as Chain

__all__ = [
    "Blurring",
    "Correlated",
    "EqualSNR",
    "Isotropic",
    "Process",
    "exponential_spectrum",
    "make_process",
    "measured_spectrum",
]

_SHARE = Bound(lambda value: 0.0 < value <= 1.0, "in (0, 1]")
_PIXELS = Bound(lambda value: 0.0 <= value < math.inf, "0 or more, in pixels")
_MEASURED_IMAGES = 10_000
"""A spectrum is measured on at most so many images; each variance is then good to 2%."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Process(Member):
    """The forward process q(x_t | x_0) of images; see `ddpm_jax.processes`."""

    affects: ClassVar[Affects] = Affects.MODEL

    @abc.abstractmethod
    def make(
        self, schedule: Chain, shape: tuple[int, int, int], measured: np.ndarray | None
    ) -> Modal:
        """The process of images of one shape; a ValueError becomes a sentence.

        Args:
            schedule: of the signal and the noise.
            shape: (height, width, channel).
            measured: what `measure` returned, stored with the run.
        """

    def measure(self, images: ImageSet) -> np.ndarray | None:
        """What `make` needs of the images themselves; by default nothing."""
        return None

    def placeholder(self, shape: tuple[int, int, int]) -> np.ndarray | None:
        """An array like that of `measure`, for plans without images; by default none is needed."""
        return None


@dataclasses.dataclass(frozen=True)
class Isotropic(Process):
    """White noise: all frequencies alike, as in DDPM."""

    def make(
        self, schedule: Chain, shape: tuple[int, int, int], measured: np.ndarray | None
    ) -> Modal:
        """`processes.isotropic`."""
        return processes.isotropic(schedule)


@dataclasses.dataclass(frozen=True)
class Blurring(Process):
    """White noise on an image that is blurred more and more."""

    max_blur: Annotated[float, _PIXELS] = 2.0
    """Standard deviation of the blur at t = T - 1, in pixels."""
    min_scale: Annotated[float, _SHARE] = 1e-3
    """What blur alone leaves of each frequency's amplitude at least."""

    def make(
        self, schedule: Chain, shape: tuple[int, int, int], measured: np.ndarray | None
    ) -> Modal:
        """`processes.blurring`."""
        return processes.blurring(schedule, shape, max_blur=self.max_blur, min_scale=self.min_scale)


@dataclasses.dataclass(frozen=True)
class Correlated(Process):
    """The noise of neighbouring pixels is alike."""

    correlation_length: Annotated[float, _PIXELS] = 0.5
    """The noise of pixels (x, y) apart has the correlation exp(-(|x| + |y|) / this)."""

    def make(
        self, schedule: Chain, shape: tuple[int, int, int], measured: np.ndarray | None
    ) -> Modal:
        """`processes.correlated` with `exponential_spectrum`."""
        spectrum = exponential_spectrum(shape, self.correlation_length)
        return processes.correlated(schedule, spectrum=spectrum, basis=bases.dct())


@dataclasses.dataclass(frozen=True)
class EqualSNR(Process):
    """Noise with the spectrum of the training images, which is measured when a run begins."""

    floor: Annotated[float, _SHARE] = 1e-4
    """Variances below this share of the largest are raised to it."""

    def make(
        self, schedule: Chain, shape: tuple[int, int, int], measured: np.ndarray | None
    ) -> Modal:
        """`processes.equal_snr`."""
        if measured is None:
            raise ValueError("equal_snr has the spectrum of images, and none were measured")
        return processes.equal_snr(schedule, measured, bases.dct(), floor=self.floor)

    def measure(self, images: ImageSet) -> np.ndarray:
        """Their spectrum."""
        return measured_spectrum(images)

    def placeholder(self, shape: tuple[int, int, int]) -> np.ndarray:
        """A flat spectrum."""
        return np.ones(shape)


def make_process(
    schedule: Schedule,
    process: Process,
    shape: tuple[int, int, int],
    measured: np.ndarray | None = None,
) -> Modal:
    """The process of images of one shape.

    Raises:
        ConfigError: numbers that make no process of these images, or no process.
    """
    chain = make_schedule(schedule)
    try:
        made: Any = process.make(chain, shape, measured)
    except ValueError as error:
        raise ConfigError(f"process: {error}") from error
    check_made("process", process, made, Modal)
    return made


def exponential_spectrum(shape: tuple[int, int, int], length: float) -> np.ndarray:
    """The variance of correlated noise in each mode, `[height, width, 1]`; see the module.

    Args:
        shape: (height, width, channel).
        length: the correlation is exp(-(|x| + |y|) / length), in pixels; 0 is white noise.
    """
    rho = np.exp(-1.0 / length) if length > 0.0 else 0.0
    rows, columns = (1.0 + rho**2 - 2.0 * rho * np.cos(np.pi * np.arange(n) / n) for n in shape[:2])
    spectrum = 1.0 / (rows[:, None, None] * columns[None, :, None])
    return spectrum / np.mean(spectrum)


def measured_spectrum(images: ImageSet) -> np.ndarray:
    """Variance of the training images in each cosine mode, `[height, width, channel]`."""
    (some, _), *_ = in_batches(images.train_centred, _MEASURED_IMAGES)
    modes = np.asarray(bases.dct().to_modes(to_model_range(some, images.levels)), np.float64)
    return np.var(modes, axis=0)
