r"""Schedules whose a^2 + b^2 is not 1: variance exploding, rectified flow, and chains of an SDE.

Each is a pair of functions a(u) and b(u), read at T times in float64 on the host. What they add to
the schedules that preserve variance is a scale of x_t, see `ddpm_jax.schedules.tables`: with
sigma = b / a, the noise level, chains with the same sigma at each t have the same KL terms.
"""

import math
from collections.abc import Sequence

import numpy as np

from ddpm_jax.schedules.build import build, check_num_steps
from ddpm_jax.schedules.tables import Schedule

__all__ = [
    "from_signal_noise",
    "rectified_flow",
    "sub_variance_preserving",
    "variance_exploding",
    "variance_preserving",
]


def from_signal_noise(
    signal: np.ndarray | Sequence[float],
    noise: np.ndarray | Sequence[float],
    *,
    prior_variance: float | None = None,
) -> Schedule:
    r"""The schedule of given factors a on the data and b on the noise, read in float64.

    .. math::

        x_t = a_t x_0 + b_t \epsilon

    Args:
        signal: a, `[T]`, above 0; the last may be exactly 0: a chain that leaves no signal.
        noise: b, `[T]`, above 0. Of both, float32 has to hold the squares.
        prior_variance: of p(x_{T-1}); by default a^2 + b^2 at T - 1, the variance that data of
            variance 1 have there.

    Returns:
        The schedule.

    Raises:
        ValueError: tables that are not one-dimensional or of different lengths, T below 2, a value
            outside its range, or a signal-to-noise ratio that does not fall, by index.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax import schedules
        >>> schedule = schedules.from_signal_noise(np.ones(3), np.array([0.1, 1.0, 10.0]))
        >>> [f"{beta:.2f}" for beta in schedule.betas.tolist()]
        ['0.01', '0.99', '99.00']
    """
    a, b = np.asarray(signal, np.float64), np.asarray(noise, np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(
            f"signal has shape {a.shape} and noise {b.shape}; both have to be one-dimensional, (T,)"
        )
    check_num_steps(len(a))
    inside = (a > 0.0) & np.isfinite(a)
    inside[-1] |= a[-1] == 0.0
    for name, table, good in (
        ("signal", a, inside),
        ("noise", b, (b > 0.0) & np.isfinite(b)),
    ):
        if not good.all():
            index = int(np.argmin(good))
            only = ", and only the last may be 0" if name == "signal" else ""
            raise ValueError(
                f"{name}[{index}] is {table[index]:g}; it has to be above 0 and finite{only}"
            )
    limits = np.finfo(np.float32)
    if prior_variance is not None and not (
        float(limits.tiny) <= prior_variance <= float(limits.max)
    ):
        raise ValueError(
            f"prior_variance is {prior_variance}; it has to be above 0 and finite in float32"
        )
    with np.errstate(divide="ignore"):
        log_signal, log_noise = 2.0 * np.log(a), 2.0 * np.log(b)
    falls = np.diff(log_signal - log_noise) < 0.0
    if not falls.all():
        t = int(np.argmin(falls)) + 1
        raise ValueError(
            f"signal / noise is {a[t] / b[t]:g} at t = {t} after {a[t - 1] / b[t - 1]:g}; noise"
            " grows with t, so the ratio has to fall at each step"
        )
    return build(log_signal, log_noise=log_noise, prior_variance=prior_variance)


def variance_exploding(
    num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Schedule:
    r"""The signal stays, and noise of growing level sigma is added.

    .. math::

        a_t = 1, \qquad b_t = \sigma_t = \Big( \sigma_{\min}^{1/\rho}
        + \frac{t}{T - 1} \big(\sigma_{\max}^{1/\rho} - \sigma_{\min}^{1/\rho}\big) \Big)^\rho

    (Karras et al. 2022, eq. 5, in the other direction). `rho` = inf is their limit, levels that are
    even in log sigma, as Song et al. 2021 have them (section 3.4).

    Args:
        num_steps: T, at least 2.
        sigma_min: noise level at t = 0, above 0. The defaults are the paper's, made for data with
            the standard deviation 0.5.
        sigma_max: noise level at T - 1, above `sigma_min`.
        rho: the larger, the more steps at low noise; above 0, and inf for even steps in log sigma.

    Returns:
        The schedule. Its prior has the variance 1 + sigma_max^2.

    Raises:
        TypeError, ValueError: T below 2 or no whole number, levels that do not rise from above 0,
            or `rho` not above 0.

    Example:
        >>> from ddpm_jax import schedules
        >>> schedule = schedules.variance_exploding(3, 1.0, 4.0, rho=float("inf"))
        >>> schedule.noise_power.round(3).tolist()
        [1.0, 4.0, 16.0]

    References:
        - Karras et al. 2022, https://arxiv.org/abs/2206.00364
        - Song et al. 2021, https://arxiv.org/abs/2011.13456
    """
    check_num_steps(num_steps)
    if not 0.0 < sigma_min < sigma_max < math.inf:
        raise ValueError(
            f"sigma_min is {sigma_min} and sigma_max is {sigma_max}; noise grows from above 0 to a"
            " larger, finite level"
        )
    if not rho > 0.0:
        raise ValueError(f"rho is {rho}; it has to be above 0, or inf")
    # Relative to sigma_max, where all digits are in log1p of what is missing.
    left = np.arange(num_steps - 1, -1, -1) / (num_steps - 1)
    log_ratio = math.log(sigma_min / sigma_max)
    if math.isinf(rho):
        log_sigma = math.log(sigma_max) + left * log_ratio
    else:
        log_sigma = math.log(sigma_max) + rho * np.log1p(left * math.expm1(log_ratio / rho))
    return build(np.zeros(num_steps), log_noise=2.0 * log_sigma)


def rectified_flow(num_steps: int, shift: float = 1.0) -> Schedule:
    r"""Straight lines from the data to the noise.

    .. math::

        a_t = 1 - u', \qquad b_t = u', \qquad
        u' = \frac{\mathrm{shift} \cdot u}{1 + (\mathrm{shift} - 1)\, u}, \qquad
        u = \frac{t + 1}{T}

    (Liu et al. 2023, eq. 1, with the noise at u = 1; Lipman et al. 2023). `shift` multiplies the
    noise level b / a. For images of m pixels in place of n, sqrt(m / n) keeps the uncertainty of an
    image at each u (Esser et al. 2024, eq. 23); it is what `shifted` does to chains that preserve
    variance. The chain leaves no signal: a network for it predicts the velocity, x0 or v, but not
    eps.

    Args:
        num_steps: T, at least 2.
        shift: factor of the noise level, above 0.

    Returns:
        The schedule.

    Raises:
        TypeError, ValueError: T below 2 or no whole number, or `shift` not above 0 and finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import schedules
        >>> schedules.rectified_flow(4).signal_variance(jnp.arange(4)).tolist()  # (1 - u)^2
        [0.5625, 0.25, 0.0625, 0.0]

    References:
        - Liu et al. 2023, https://arxiv.org/abs/2209.03003
        - Lipman et al. 2023, https://arxiv.org/abs/2210.02747
        - Esser et al. 2024, https://arxiv.org/abs/2403.03206
    """
    check_num_steps(num_steps)
    if not 0.0 < shift < math.inf:
        raise ValueError(f"shift is {shift}; it has to be above 0 and finite")
    step = np.arange(1, num_steps + 1)
    noise, signal = shift * step, np.arange(num_steps - 1, -1, -1, dtype=np.float64)
    with np.errstate(divide="ignore"):
        # a = 1 / (1 + sigma), by what is small of the two.
        log_signal = np.where(
            noise < signal,
            -np.log1p(noise / np.maximum(signal, 1.0)),
            np.log(signal / (signal + noise)),
        )
        log_noise = np.where(
            signal < noise, -np.log1p(signal / noise), np.log(noise / (signal + noise))
        )
    return build(2.0 * log_signal, log_noise=2.0 * log_noise)


def variance_preserving(num_steps: int, beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    r"""The variance-preserving SDE, read at T times.

    .. math::

        \bar\alpha_t = e^{-B(u)}, \qquad
        B(u) = \beta_{\min} u + \tfrac12 (\beta_{\max} - \beta_{\min})\, u^2, \qquad
        u = \frac{t + 1}{T}

    (Song et al. 2021, eq. 33). Any T reads the same path; `linear(1000)` is close to it at
    T = 1000, and other T of `linear` are not.

    Args:
        num_steps: T, at least 2.
        beta_min: the rate at u = 0, above 0.
        beta_max: the rate at u = 1, at least `beta_min`.

    Returns:
        The schedule.

    Raises:
        TypeError, ValueError: T below 2 or no whole number, or rates that fall or are not above 0.

    Example:
        >>> from ddpm_jax import schedules
        >>> coarse, fine = (schedules.variance_preserving(T) for T in (10, 1000))
        >>> bool(coarse.alpha_bar[4] == fine.alpha_bar[499])  # both at u = 1/2
        True

    References:
        Song et al. 2021, https://arxiv.org/abs/2011.13456
    """
    return build(-_integrated_rate(num_steps, beta_min, beta_max))


def sub_variance_preserving(
    num_steps: int, beta_min: float = 0.1, beta_max: float = 20.0
) -> Schedule:
    r"""The sub-VP SDE, whose noise variance is below that of the VP SDE, read at T times.

    .. math::

        a_t^2 = e^{-B(u)}, \qquad b_t = 1 - e^{-B(u)}

    with B and u of `variance_preserving` (Song et al. 2021, eq. 29 and appendix B).

    Args:
        num_steps: T, at least 2.
        beta_min: the rate at u = 0, above 0.
        beta_max: the rate at u = 1, at least `beta_min`.

    Returns:
        The schedule.

    Raises:
        TypeError, ValueError: T below 2 or no whole number, or rates that fall or are not above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import schedules
        >>> power = schedules.sub_variance_preserving(1000).power(jnp.array([0, 250, 999]))
        >>> power.round(2).tolist()  # in the middle less than at the ends
        [1.0, 0.75, 1.0]

    References:
        Song et al. 2021, https://arxiv.org/abs/2011.13456
    """
    rate = _integrated_rate(num_steps, beta_min, beta_max)
    return build(-rate, log_noise=2.0 * np.log(-np.expm1(-rate)))


def _integrated_rate(num_steps: int, beta_min: float, beta_max: float) -> np.ndarray:
    check_num_steps(num_steps)
    if not 0.0 < beta_min <= beta_max < math.inf:
        raise ValueError(
            f"beta_min is {beta_min} and beta_max is {beta_max}; rates rise from above 0 to a"
            " finite one"
        )
    u = np.arange(1, num_steps + 1) / num_steps
    return beta_min * u + 0.5 * (beta_max - beta_min) * u**2
