"""Modal processes of published papers.

All start from a `Schedule`, whose a and b they change mode by mode:

- `isotropic`: nothing is changed; one mode, shared by all.
- `correlated`: b_k^2 = b^2 lambda_k, noise of covariance Lambda.
- `equal_snr`: the same, with lambda_k the data's own variance in mode k.
- `blurring`: a_k^2 = a^2 d_k(t)^2, heat dissipation d.

Tables are computed in float64 on the host.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from ddpm_jax import bases
from ddpm_jax.checks import check_covariance
from ddpm_jax.processes.spectral import Spectral, build, check_even
from ddpm_jax.schedules.tables import Schedule, check_schedule, on_host

__all__ = ["blurring", "correlated", "equal_snr", "isotropic"]


def isotropic(schedule: Schedule) -> Schedule:
    """The process of one mode that all pixels share: DDPM's, which is the schedule itself.

    It is here so that every process has a constructor.

    Args:
        schedule: a and b at each time.

    Returns:
        `schedule`.

    Raises:
        TypeError: `schedule` is not a Schedule.

    Example:
        >>> from ddpm_jax import processes, schedules
        >>> processes.isotropic(schedules.cosine(10)) == schedules.cosine(10)
        True
    """
    check_schedule(schedule)
    return schedule


def correlated(
    schedule: Schedule,
    covariance: ArrayLike | None = None,
    *,
    spectrum: ArrayLike | None = None,
    basis: bases.Basis | None = None,
    shape: tuple[int, ...] | None = None,
    floor: float | None = None,
) -> Spectral:
    r"""Noise with a covariance, in the place of white noise.

    .. math::

        x_t = a_t x_0 + b_t \Lambda^{1/2} \epsilon

    The prior is N(0, Lambda), times the variance of the schedule's prior. Each step scales all of x
    alike and adds noise of one covariance, so the modes of Lambda never mix, and the chain has its
    closed forms. In white eps the weight of the KL is the same for all modes and the plain squared
    error stays right; in x0, or in the noise Lambda^(1/2) eps that was added, the error is one in
    the norm of Lambda^-1.

    A singular covariance gives modes without noise, in which density, score and KL do not exist. It
    raises an error, unless `floor` gives such modes some noise.

    Args:
        schedule: a and b at each time.
        covariance: Lambda `[d, d]`, symmetric, of the flattened data; read in float64.
        spectrum: in its place, its eigenvalues `[*modes]` in `basis`. `modes` has as many axes as
            the data, each as long as theirs or 1: `[h, w, 1]` for channels alike.
        basis: of the spectrum.
        shape: of one example, for a covariance of images; by default `(d,)`.
        floor: eigenvalues below this share of the largest are raised to it.

    Returns:
        The process, one mode for each eigenvalue.

    Raises:
        TypeError: `schedule` is not a Schedule, or traced.
        ValueError: a covariance that is not symmetric, not positive semi-definite, or singular
            where there is no floor; both or neither of covariance and spectrum; shapes that do not
            fit; a floor outside (0, 1].

    Example:
        >>> import numpy as np
        >>> from ddpm_jax import processes, schedules
        >>> near = np.exp(-np.abs(np.subtract.outer(np.arange(8), np.arange(8))) / 2.0)
        >>> processes.correlated(schedules.cosine(100), near).num_steps
        100
    """
    check_schedule(schedule)
    if (covariance is None) == (spectrum is None):
        raise ValueError("covariance and spectrum: one of the two has to be given")
    if covariance is not None:
        if basis is not None:
            raise ValueError("basis is given; it goes with spectrum, a covariance has its own")
        eigenvalues, basis = _eigenbasis(covariance, shape)
    else:
        if basis is None:
            raise ValueError("basis is missing; spectrum is one by its modes")
        eigenvalues = np.asarray(spectrum, np.float64)
        if shape is not None:
            raise ValueError(f"shape is {shape}; it goes with covariance, a spectrum has its own")
        if eigenvalues.size == 0 or not ((eigenvalues >= 0.0) & (eigenvalues < np.inf)).all():
            raise ValueError(
                "spectrum is empty, negative or not finite somewhere; variances are not"
            )
        check_even("spectrum", eigenvalues[None], basis)
    eigenvalues = _regular(eigenvalues, floor)
    log_alpha_bar = _column(on_host(schedule.log_alpha_bar_parts), eigenvalues.ndim)
    log_noise = _column(on_host(schedule.log_noise_parts), eigenvalues.ndim)
    log_eigenvalues = np.log(eigenvalues)
    return build(
        log_alpha_bar,
        log_noise + log_eigenvalues[None],
        basis,
        log_prior_variance=log_eigenvalues + np.log(float(schedule.prior_table[0])),
    )


def equal_snr(
    schedule: Schedule,
    spectrum: ArrayLike,
    basis: bases.Basis,
    *,
    floor: float | None = None,
) -> Spectral:
    r"""Noise with the data's own spectrum, which hides all modes at the same time.

    .. math::

        \frac{a_t^2\, \mathrm{Var}[x_{0,k}]}{b_{t,k}^2} = \mathrm{SNR}_t
        \quad \text{in every mode } k

    Under white noise the fine detail of natural images, whose spectrum falls with frequency, is
    gone long before their outline; here the power of the data over that of the noise is SNR(t) of
    the schedule in every mode (EqualSNR of Falck et al. 2025). It is `correlated` with the data's
    spectrum.

    Args:
        schedule: its signal-to-noise ratio is the ratio.
        spectrum: variance of the data in each mode, `[*modes]`: the mean of
            `basis.to_modes(x0 - mean)^2` over the data.
        basis: of the spectrum.
        floor: variances below this share of the largest are raised to it: modes that the data never
            use would get no noise.

    Returns:
        The process, one mode for each variance.

    Raises:
        TypeError: `schedule` is not a Schedule, or traced.
        ValueError: as `correlated`.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax import bases, processes, schedules
        >>> spectrum = 1.0 / (1.0 + np.arange(8.0)[:, None, None] + np.arange(8.0)[:, None])
        >>> processes.equal_snr(schedules.cosine(100), spectrum, bases.dct()).num_steps
        100

    References:
        Falck et al. 2025, https://arxiv.org/abs/2505.11278
    """
    return correlated(schedule, spectrum=spectrum, basis=basis, floor=floor)


def blurring(
    schedule: Schedule,
    shape: tuple[int, ...],
    *,
    max_blur: float = 20.0,
    min_scale: float = 1e-3,
) -> Spectral:
    r"""Blur and noise at once.

    In the cosine basis of images `[height, width, channel]`, whose modes have the frequencies
    w = pi (i / height, j / width), heat dissipation multiplies the signal:

    .. math::

        a_t(w) = a_t\, d_t(w), \qquad b_t(w) = b_t

    .. math::

        d_t(w) = (1 - \mathrm{min\_scale})\, e^{-|w|^2 \tau_t} + \mathrm{min\_scale}, \qquad
        \tau_t = \tfrac12 \big(\mathrm{max\_blur}\, \sin^2(\pi u / 2)\big)^2

    at u = (t + 1) / T (Hoogeboom & Salimans 2022, section 4, after Rissanen et al. 2022). a^2 + b^2
    is below 1 but for the mean of the image.

    Args:
        schedule: a and b at each time, without the blur.
        shape: of one image; its last axis is the channel and is left alone.
        max_blur: standard deviation of the Gaussian kernel at T - 1, in pixels; 0 is DDPM.
        min_scale: what blur alone leaves of each mode at least, in (0, 1].

    Returns:
        The process, one mode for each frequency, shared by the channels.

    Raises:
        TypeError: `schedule` is not a Schedule, or traced.
        ValueError: a shape without spatial axes, `max_blur` below 0 or `min_scale` outside (0, 1].

    Example:
        >>> from ddpm_jax import processes, schedules
        >>> processes.blurring(schedules.cosine(1000), (8, 8, 1)).zero_terminal_snr
        False

    References:
        - Hoogeboom & Salimans 2022, https://arxiv.org/abs/2209.05557
        - Rissanen et al. 2022, https://arxiv.org/abs/2206.13397
    """
    check_schedule(schedule)
    shape = tuple(shape)
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"shape is {shape}; it has to be that of an image, the channel last")
    if not (max_blur >= 0.0 and math.isfinite(max_blur)):
        raise ValueError(f"max_blur is {max_blur}; it has to be 0 or more, in pixels")
    if not 0.0 < min_scale <= 1.0:
        raise ValueError(f"min_scale is {min_scale}; it has to be in (0, 1]")
    sides = shape[:-1]
    frequencies = np.meshgrid(*(np.pi * np.arange(n) / n for n in sides), indexing="ij")
    squared = np.sum(np.square(frequencies), axis=0)[..., None]
    u = np.arange(1, schedule.num_steps + 1) / schedule.num_steps
    tau = 0.5 * np.square(max_blur * np.square(np.sin(0.5 * np.pi * u)))
    rank = squared.ndim
    # (1 - m) e^-z + m as 1 + (1 - m) expm1(-z): early blur is little, and log1p keeps all of it;
    # late, m is little, and the sum of logarithms keeps that.
    z = _column(tau, rank) * squared[None]
    early = np.log1p((1.0 - min_scale) * np.expm1(-np.minimum(z, 1.0)))
    log_rest = math.log1p(-min_scale) if min_scale < 1.0 else -math.inf
    log_scale = np.where(z < 1.0, early, np.logaddexp(log_rest - z, math.log(min_scale)))
    log_alpha_bar = _column(on_host(schedule.log_alpha_bar_parts), rank)
    log_noise = _column(on_host(schedule.log_noise_parts), rank)
    return build(
        log_alpha_bar + 2.0 * log_scale,
        log_noise,
        bases.dct(tuple(range(len(sides)))),
        log_prior_variance=np.full((1,) * rank, np.log(float(schedule.prior_table[0]))),
    )


def _column(table: np.ndarray, rank: int) -> np.ndarray:
    """A table `[T]` that broadcasts over as many axes of modes."""
    return table.reshape(-1, *(1,) * rank)


def _eigenbasis(
    covariance: ArrayLike, shape: tuple[int, ...] | None
) -> tuple[np.ndarray, bases.Basis]:
    matrix = np.asarray(covariance, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise ValueError(f"covariance has shape {matrix.shape}; it has to be (d, d)")
    shape = (len(matrix),) if shape is None else tuple(shape)
    if not np.isfinite(matrix).all():
        raise ValueError("covariance is not finite")
    eigenvalues, eigenvectors = check_covariance("covariance", matrix)
    basis = bases.orthonormal(eigenvectors.T, shape)
    return eigenvalues.reshape(shape), basis


def _regular(eigenvalues: np.ndarray, floor: float | None) -> np.ndarray:
    """Eigenvalues above 0: those that are, or those that `floor` makes so."""
    largest = eigenvalues.max()
    if floor is None:
        least = eigenvalues.min()
        # Less is what rounding to float32, or an eigensolver, leaves of a zero.
        if least <= 1e-7 * largest:
            raise ValueError(
                f"the covariance is singular: its least eigenvalue is {least:.3g} beside a largest"
                f" of {largest:.3g}, and a mode without noise has no density; floor=1e-4 gives such"
                " modes that share of the largest"
            )
        return eigenvalues
    if not 0.0 < floor <= 1.0:
        raise ValueError(f"floor is {floor}; it has to be in (0, 1]")
    if largest <= 0.0:
        raise ValueError("the covariance is 0; there is no noise to raise")
    return np.maximum(eigenvalues, floor * largest)
