r"""The forward processes: how the noise of a schedule acts on each frequency of an image.

Cosine modes of images `[height, width, channel]` have the frequencies
:math:`w = \pi (i / \mathrm{height}, j / \mathrm{width})`. If the noise of two pixels :math:`(x, y)`
apart has the correlation :math:`\rho^{|x| + |y|}`, its spectrum is

.. math::

    \lambda(w) = f(w_1) f(w_2), \qquad f(w) = \frac{1 - \rho^2}{1 - 2 \rho \cos w + \rho^2},

the spectrum of an autoregression in each direction; cosine modes mirror the noise at the borders.
The spectrum is divided by its mean over the modes, so that the mean variance of the pixels is that
of the schedule for any rho.
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
"""Number of images on which a spectrum is measured; each variance then has an error of 2%."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Process(Member):
    """The forward process q(x_t | x_0) of images; see `ddpm_jax.processes`."""

    affects: ClassVar[Affects] = Affects.MODEL
    takes_traced_schedule: ClassVar[bool] = False
    """Whether `make` works while JAX traces the schedule, as it does one that is learned."""

    @abc.abstractmethod
    def make(
        self, schedule: Chain, shape: tuple[int, int, int], measured: np.ndarray | None
    ) -> Modal:
        """The process for images of one shape.

        Args:
            schedule: tables of the chain.
            shape: (height, width, channel).
            measured: the result of `measure`, which is stored with the run.

        Returns:
            The process, see `ddpm_jax.processes`.

        Raises:
            ValueError: the fields make no process. The caller turns it into a ConfigError.
        """

    def measure(self, images: ImageSet) -> np.ndarray | None:
        """What `make` needs to know of the images.

        Args:
            images: the data set; use its training images only.

        Returns:
            An array, or None (the default) if `make` needs nothing.
        """
        return None

    def placeholder(self, shape: tuple[int, int, int]) -> np.ndarray | None:
        """An array that can stand for the result of `measure` if there are no images.

        `ddpm-jax plan` and `ddpm-jax inspect` use it.

        Args:
            shape: (height, width, channel).

        Returns:
            An array of the shape that `measure` returns, or None (the default).
        """
        return None


@dataclasses.dataclass(frozen=True)
class Isotropic(Process):
    """White noise, the same at all frequencies, as in DDPM."""

    takes_traced_schedule: ClassVar[bool] = True

    def make(
        self, schedule: Chain, shape: tuple[int, int, int], measured: np.ndarray | None
    ) -> Modal:
        """`processes.isotropic`."""
        return processes.isotropic(schedule)


@dataclasses.dataclass(frozen=True)
class Blurring(Process):
    """White noise, and a blur that grows with t (Hoogeboom & Salimans 2022)."""

    max_blur: Annotated[float, _PIXELS] = 2.0
    """Standard deviation of the blur at t = T - 1, in pixels."""
    min_scale: Annotated[float, _SHARE] = 1e-3
    """Smallest factor of an amplitude by the blur, in (0, 1]."""

    def make(
        self, schedule: Chain, shape: tuple[int, int, int], measured: np.ndarray | None
    ) -> Modal:
        """`processes.blurring`."""
        return processes.blurring(schedule, shape, max_blur=self.max_blur, min_scale=self.min_scale)


@dataclasses.dataclass(frozen=True)
class Correlated(Process):
    """Noise that is correlated between neighbouring pixels."""

    correlation_length: Annotated[float, _PIXELS] = 0.5
    """Length in pixels: noise at a distance of (x, y) pixels has the correlation
    exp(-(abs(x) + abs(y)) / length). 0 is white noise."""

    def make(
        self, schedule: Chain, shape: tuple[int, int, int], measured: np.ndarray | None
    ) -> Modal:
        """`processes.correlated` with `exponential_spectrum`."""
        spectrum = exponential_spectrum(shape, self.correlation_length)
        return processes.correlated(schedule, spectrum=spectrum, basis=bases.dct())


@dataclasses.dataclass(frozen=True)
class EqualSNR(Process):
    """Noise with the spectrum of the training images, so that all frequencies have the same SNR.

    The spectrum is measured when a run begins.
    """

    floor: Annotated[float, _SHARE] = 1e-4
    """Smallest variance of a frequency, as a share of the largest one, in (0, 1]."""

    def make(
        self, schedule: Chain, shape: tuple[int, int, int], measured: np.ndarray | None
    ) -> Modal:
        """`processes.equal_snr`."""
        if measured is None:
            raise ValueError("equal_snr needs the spectrum of the images, which was not measured")
        return processes.equal_snr(schedule, measured, bases.dct(), floor=self.floor)

    def measure(self, images: ImageSet) -> np.ndarray:
        """Returns `measured_spectrum`."""
        return measured_spectrum(images)

    def placeholder(self, shape: tuple[int, int, int]) -> np.ndarray:
        """Returns a flat spectrum."""
        return np.ones(shape)


def make_process(
    schedule: Schedule,
    process: Process,
    shape: tuple[int, int, int],
    measured: np.ndarray | None = None,
) -> Modal:
    """The process of a config for images of one shape.

    Args:
        schedule: the member of this family.
        process: the member of this family.
        shape: (height, width, channel).
        measured: the result of `process.measure`, if it has one.

    Returns:
        The process, see `ddpm_jax.processes`.

    Raises:
        ConfigError: the fields make no process of these images, or the member's `make` returned
            none.
    """
    chain = make_schedule(schedule)
    try:
        made: Any = process.make(chain, shape, measured)
    except ValueError as error:
        raise ConfigError(f"process: {error}") from error
    check_made("process", process, made, Modal)
    return made


def exponential_spectrum(shape: tuple[int, int, int], length: float) -> np.ndarray:
    r"""The variance of correlated noise in each cosine mode.

    With :math:`\rho = \exp(-1 / \mathrm{length})` the correlation of the noise of two pixels
    :math:`(x, y)` apart is :math:`\rho^{|x| + |y|}`, and

    .. math::

        \lambda(w) \propto f(w_1) f(w_2), \qquad
        f(w) = \frac{1 - \rho^2}{1 - 2 \rho \cos w + \rho^2}.

    Args:
        shape: (height, width, channel).
        length: in pixels, 0 or more; 0 is white noise.

    Returns:
        float64 `[height, width, 1]` with the mean 1.
    """
    rho = np.exp(-1.0 / length) if length > 0.0 else 0.0
    rows, columns = (1.0 + rho**2 - 2.0 * rho * np.cos(np.pi * np.arange(n) / n) for n in shape[:2])
    spectrum = 1.0 / (rows[:, None, None] * columns[None, :, None])
    return spectrum / np.mean(spectrum)


def measured_spectrum(images: ImageSet) -> np.ndarray:
    """The variance of the training images in each cosine mode.

    Args:
        images: the data set, of which at most 10,000 training images are read.

    Returns:
        float64 `[height, width, channel]`, of images in [-1, 1].
    """
    (some, _), *_ = in_batches(images.train_centred, _MEASURED_IMAGES)
    modes = np.asarray(bases.dct().to_modes(to_model_range(some, images.levels)), np.float64)
    return np.var(modes, axis=0)
