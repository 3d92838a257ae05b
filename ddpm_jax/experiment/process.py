r"""The forward process of an experiment: its config's numbers, and the images where they matter.

Cosine modes of images `[height, width, channel]` have the frequencies w = pi (i / height,
j / width). Noise of pixels (x, y) apart that is correlated by rho^(|x| + |y|) has the spectrum

    lambda(w) = f(w_1) f(w_2)        f(w) = (1 - rho^2) / (1 - 2 rho cos w + rho^2)

that of an autoregression in each direction; in cosine modes the borders mirror it. It is divided by
its mean over the modes, so that noise has the variance that the schedule says in the mean over the
pixels, whatever rho.
"""

import numpy as np
from numpy.typing import ArrayLike

from ddpm_jax import bases, processes
from ddpm_jax.config import Config, ConfigError, make_schedule
from ddpm_jax.data import ImageSet, in_batches, to_model_range
from ddpm_jax.processes import Modal

__all__ = ["exponential_spectrum", "make_process", "measured_spectrum"]

_MEASURED_IMAGES = 10_000
"""A spectrum is measured on at most so many images; each variance is then good to 2%."""


def make_process(
    config: Config, shape: tuple[int, int, int], *, spectrum: ArrayLike | None = None
) -> Modal:
    """The process that `config.schedule` and `config.process` name, for images of one shape.

    Args:
        config: the run's.
        shape: (height, width, channel).
        spectrum: variance of the images in each cosine mode, for "equal_snr" and unused by others.

    Raises:
        ConfigError: numbers that make no process of these images.
    """
    schedule, process = make_schedule(config.schedule), config.process
    try:
        match process.name:
            case "isotropic":
                return processes.isotropic(schedule)
            case "blurring":
                return processes.blurring(
                    schedule, shape, max_blur=process.max_blur, min_scale=process.min_scale
                )
            case "correlated":
                return processes.correlated(
                    schedule,
                    spectrum=exponential_spectrum(shape, process.correlation_length),
                    basis=bases.dct(),
                )
        if spectrum is None:
            raise ValueError("equal_snr has the spectrum of images, and none were measured")
        return processes.equal_snr(schedule, spectrum, bases.dct(), floor=process.floor)
    except ValueError as error:
        raise ConfigError(f"process: {error}") from error


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
