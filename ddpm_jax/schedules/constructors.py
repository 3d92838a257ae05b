"""Schedules that preserve variance, from a formula or from given tables.

Every constructor works in float64 on the host and refuses arguments that make no chain. The symbols
are those of `ddpm_jax.schedules.tables`; u = (t + 1) / T runs from 1 / T to 1.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ddpm_jax.arrays import widened
from ddpm_jax.schedules.build import build, build_traced, check_num_steps
from ddpm_jax.schedules.tables import Schedule

__all__ = [
    "constant",
    "cosine",
    "from_alpha_bar",
    "from_betas",
    "from_log_snr",
    "linear",
    "linear_log_snr",
    "quadratic",
    "sigmoid",
]


def linear(num_steps: int, beta_min: float = 1e-4, beta_max: float = 0.02) -> Schedule:
    r"""Betas evenly spaced from `beta_min` to `beta_max`.

    .. math::

        \beta_t = \beta_{\min} + \frac{t}{T - 1} (\beta_{\max} - \beta_{\min})

    (Ho et al. 2020, section 4). The defaults are the paper's, made for `num_steps` = 1000; they are
    not rescaled for another T.

    Args:
        num_steps: T, at least 2.
        beta_min: the first beta, in (0, 1).
        beta_max: the last beta, in (0, 1).

    Returns:
        The schedule.

    Raises:
        TypeError, ValueError: T below 2 or no whole number, or a beta outside (0, 1).

    Example:
        >>> from ddpm_jax import schedules
        >>> schedules.linear(1000).num_steps
        1000

    References:
        Ho et al. 2020, https://arxiv.org/abs/2006.11239
    """
    check_num_steps(num_steps)
    _check_inside("beta_min", beta_min)
    _check_inside("beta_max", beta_max)
    return from_betas(np.linspace(beta_min, beta_max, num_steps, dtype=np.float64))


def quadratic(num_steps: int, beta_min: float = 1e-4, beta_max: float = 0.02) -> Schedule:
    r"""Square roots of the betas evenly spaced; some codebases call it scaled linear.

    .. math::

        \beta_t = \Big( \sqrt{\beta_{\min}}
        + \frac{t}{T - 1} \big(\sqrt{\beta_{\max}} - \sqrt{\beta_{\min}}\big) \Big)^2

    Stable Diffusion, a published latent diffusion model (Rombach et al. 2022), has
    beta_min = 0.00085 and beta_max = 0.012 at T = 1000; the paper itself does not give them.

    Args:
        num_steps: T, at least 2.
        beta_min: the first beta, in (0, 1).
        beta_max: the last beta, in (0, 1).

    Returns:
        The schedule.

    Raises:
        TypeError, ValueError: T below 2 or no whole number, or a beta outside (0, 1).

    Example:
        >>> from ddpm_jax import schedules
        >>> betas = schedules.quadratic(1000, 0.00085, 0.012).betas
        >>> round(float(betas[0]), 5), round(float(betas[-1]), 5)
        (0.00085, 0.012)

    References:
        Rombach et al. 2022, https://arxiv.org/abs/2112.10752
    """
    check_num_steps(num_steps)
    _check_inside("beta_min", beta_min)
    _check_inside("beta_max", beta_max)
    return from_betas(np.linspace(math.sqrt(beta_min), math.sqrt(beta_max), num_steps) ** 2)


def constant(num_steps: int, beta: float) -> Schedule:
    r"""The same `beta` at every step.

    .. math::

        \bar\alpha_t = (1 - \beta)^{t + 1}

    Args:
        num_steps: T, at least 2.
        beta: in (0, 1).

    Returns:
        The schedule.

    Raises:
        TypeError, ValueError: T below 2 or no whole number, or `beta` outside (0, 1).

    Example:
        >>> from ddpm_jax import schedules
        >>> schedules.constant(3, beta=0.5).alpha_bar.tolist()
        [0.5, 0.25, 0.125]
    """
    check_num_steps(num_steps)
    _check_inside("beta", beta)
    betas = np.full(num_steps, beta, dtype=np.float64)
    return build(np.log1p(-betas) * np.arange(1, num_steps + 1), betas=betas)


def cosine(num_steps: int, offset: float = 0.008, max_beta: float = 0.999) -> Schedule:
    r"""alpha_bar follows a squared cosine.

    .. math::

        \bar\alpha_t = \frac{f(u)}{f(0)}, \qquad
        f(u) = \cos^2\Big(\frac{\pi}{2} \cdot \frac{u + \mathrm{offset}}{1 + \mathrm{offset}}\Big),
        \qquad u = \frac{t + 1}{T}

    (Nichol & Dhariwal 2021, eq. 17). Betas above `max_beta` are cut to it, as in the paper.

    Args:
        num_steps: T, at least 2.
        offset: keeps the first betas from vanishing; at least 0.
        max_beta: the largest beta, in (0, 1).

    Returns:
        The schedule.

    Raises:
        TypeError, ValueError: T below 2 or no whole number, a negative offset, or `max_beta`
            outside (0, 1).

    Example:
        >>> from ddpm_jax import schedules
        >>> round(float(schedules.cosine(1000).alpha_bar[499]), 3)  # halfway
        0.494

    References:
        Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672
    """
    check_num_steps(num_steps)
    if not (offset >= 0.0 and math.isfinite(offset)):
        raise ValueError(f"offset is {offset}; it has to be 0 or more")
    _check_inside("max_beta", max_beta)
    # Half-angle form: log cos^2 loses every digit of 1 - cos^2 near u = 0, sin^2 does not.
    angle = 0.5 * math.pi * (np.arange(num_steps + 1) / num_steps + offset) / (1.0 + offset)
    step = np.diff(angle)
    # cos^2(a + d) / cos^2(a) = (cos d - tan a sin d)^2, so beta = (1 - r)(1 + r) with small 1 - r.
    one_minus_ratio = 2.0 * np.sin(0.5 * step) ** 2 + np.tan(angle[:-1]) * np.sin(step)
    betas = one_minus_ratio * (2.0 - one_minus_ratio)
    return from_betas(np.minimum(betas, max_beta))


def sigmoid(
    num_steps: int,
    start: float = -3.0,
    end: float = 3.0,
    tau: float = 1.0,
    max_beta: float = 0.999,
) -> Schedule:
    r"""alpha_bar follows a sigmoid, which falls from 1 to 0.

    .. math::

        \bar\alpha_t = \frac{\sigma(x(1)) - \sigma(x(u))}{\sigma(x(1)) - \sigma(x(0))}, \qquad
        x(u) = \frac{\mathrm{start} + u\, (\mathrm{end} - \mathrm{start})}{\tau}, \qquad
        u = \frac{t + 1}{T}

    with sigma the logistic sigmoid (Jabri et al. 2023; Chen 2023, algorithm 1). Betas above
    `max_beta` are cut to it, as the cosine's are; `zero_terminal_snr` takes what that leaves.

    Args:
        num_steps: T, at least 2.
        start: where on the sigmoid the chain begins.
        end: where it ends, above `start`.
        tau: temperature, above 0; a larger one is closer to a straight line.
        max_beta: the largest beta, in (0, 1).

    Returns:
        The schedule.

    Raises:
        TypeError, ValueError: T below 2 or no whole number, or arguments outside these ranges.

    Example:
        >>> from ddpm_jax import schedules
        >>> round(float(schedules.sigmoid(1000).alpha_bar[499]), 3)  # halfway
        0.5

    References:
        - Jabri et al. 2023, https://arxiv.org/abs/2212.11972
        - Chen 2023, https://arxiv.org/abs/2301.10972
    """
    check_num_steps(num_steps)
    if not (math.isfinite(start) and math.isfinite(end) and start < end):
        raise ValueError(f"start is {start} and end is {end}; end has to be the larger")
    if not (math.isfinite(tau) and tau > 0.0):
        raise ValueError(f"tau is {tau}; it has to be above 0")
    _check_inside("max_beta", max_beta)
    first, last, step = start / tau, end / tau, (end - start) / tau / num_steps
    if max(abs(first), abs(last)) > 400.0:  # where cosh and sinh overflow
        raise ValueError(
            f"start / tau is {first:g} and end / tau is {last:g}; both have to be within 400 of 0"
        )
    # sigmoid(x) - sigmoid(y) = sinh((x - y) / 2) / (2 cosh(x / 2) cosh(y / 2)), twice.
    t = np.arange(num_steps)
    x = first + step * (t + 1)
    left = step * (num_steps - t)  # from x(u) one step earlier to the end
    betas = math.sinh(0.5 * step) * math.cosh(0.5 * last) / (np.cosh(0.5 * x) * np.sinh(0.5 * left))
    return from_betas(np.minimum(betas, max_beta))


def linear_log_snr(num_steps: int, log_snr_max: float = 7.0, log_snr_min: float = -8.0) -> Schedule:
    r"""log SNR falls linearly from `log_snr_max` at t = 0 to `log_snr_min` at t = T - 1.

    .. math::

        \log \mathrm{SNR}_t = \log \mathrm{SNR}_{\max}
        - \frac{t}{T - 1} (\log \mathrm{SNR}_{\max} - \log \mathrm{SNR}_{\min})

    The KL terms of the ELBO then all carry the same weight on the squared error of eps, because
    that weight depends on the step in log SNR alone (Kingma et al. 2021, eq. 14). `log_snr_max` is
    best set from the data's grid: noise far below the spacing of the grey levels only adds to the
    KL terms.

    Args:
        num_steps: T, at least 2.
        log_snr_max: log SNR after one step, natural logarithm; above `log_snr_min`.
        log_snr_min: log SNR of the prior, natural logarithm.

    Returns:
        The schedule.

    Raises:
        TypeError, ValueError: T below 2 or no whole number, or values that are not finite and
            falling.

    Example:
        >>> from ddpm_jax import schedules
        >>> schedules.linear_log_snr(4, 7.0, -8.0).log_snr.tolist()
        [7.0, 2.0, -3.0, -8.0]

    References:
        Kingma et al. 2021, https://arxiv.org/abs/2107.00630
    """
    check_num_steps(num_steps)
    if not (math.isfinite(log_snr_max) and math.isfinite(log_snr_min)):
        raise ValueError(
            f"log_snr_max is {log_snr_max} and log_snr_min is {log_snr_min}; both have to be finite"
        )
    if log_snr_max <= log_snr_min:
        raise ValueError(
            f"log_snr_max is {log_snr_max}, log_snr_min is {log_snr_min}; noise grows with t, so"
            " log_snr_max has to be the larger"
        )
    return from_log_snr(np.linspace(log_snr_max, log_snr_min, num_steps, dtype=np.float64))


def from_betas(betas: np.ndarray | Sequence[float]) -> Schedule:
    """The schedule of given betas, read in float64.

    Args:
        betas: `[T]`, each in (0, 1). The last may be exactly 1: a chain that leaves no signal.

    Returns:
        The schedule.

    Raises:
        ValueError: not one-dimensional, T below 2, or a beta outside (0, 1), by index.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax import schedules
        >>> schedules.from_betas(np.array([0.1, 0.2])).alpha_bar.tolist()
        [0.8999999761581421, 0.7200000286102295]
    """
    betas = _vector("betas", betas)
    inside = (betas > 0.0) & (betas < 1.0)
    inside[-1] |= betas[-1] == 1.0
    if not inside.all():
        index = int(np.argmin(inside))
        raise ValueError(f"betas[{index}] is {betas[index]:g}; every beta has to be inside (0, 1)")
    with np.errstate(divide="ignore"):
        return build(np.cumsum(np.log1p(-betas)), betas=betas)


def from_alpha_bar(alpha_bar: np.ndarray) -> Schedule:
    r"""The schedule of given alpha_bar, read in float64.

    .. math::

        \beta_t = 1 - \bar\alpha_t / \bar\alpha_{t-1}

    Args:
        alpha_bar: `[T]`, falling inside (0, 1). The last may be exactly 0: a chain that leaves no
            signal.

    Returns:
        The schedule.

    Raises:
        ValueError: not one-dimensional, T below 2, outside (0, 1) or not falling, by index.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax import schedules
        >>> schedules.from_alpha_bar(np.array([0.5, 0.25])).betas.tolist()
        [0.5, 0.5]
    """
    alpha_bar = _vector("alpha_bar", alpha_bar)
    inside = (alpha_bar > 0.0) & (alpha_bar < 1.0)
    inside[-1] |= alpha_bar[-1] == 0.0
    if not inside.all():
        index = int(np.argmin(inside))
        raise ValueError(
            f"alpha_bar[{index}] is {alpha_bar[index]:g}; it has to be inside (0, 1), and only the"
            " last may be 0"
        )
    _check_falling("alpha_bar", alpha_bar)
    before = np.concatenate([[1.0], alpha_bar[:-1]])
    with np.errstate(divide="ignore"):
        return build(np.log(alpha_bar), betas=(before - alpha_bar) / before)


def from_log_snr(
    log_snr: np.ndarray | Sequence[float] | Array,
    *,
    network_times: np.ndarray | Sequence[float] | Array | None = None,
) -> Schedule:
    r"""The schedule of given log SNR, natural logarithm.

    .. math::

        \bar\alpha_t = \frac{1}{1 + \exp(-\log \mathrm{SNR}_t)}

    It is read in float64 on the host. A table that is being traced, such as one that a network
    makes, gives a schedule of traced tables, and gradients reach what made it. Those have the
    precision of float32: neighbouring differences of log SNR keep as many digits as `log_snr` has
    of them. Values are not checked: where log SNR rises, the KL term of that step is negative, and
    there is no bound.

    Args:
        log_snr: `[T]`, finite and falling. The last may be -inf: a chain that leaves no signal.
        network_times: the time that a network gets at each t, `[T]`, rising; t by default.

    Returns:
        The schedule.

    Raises:
        ValueError: not one-dimensional, T below 2, not finite or not falling, by index; or
            `network_times` of another length.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax import schedules
        >>> schedules.from_log_snr(np.array([0.0, -np.inf])).alpha_bar.tolist()
        [0.5, 0.0]
    """
    if network_times is not None and np.shape(network_times) != np.shape(log_snr):
        raise ValueError(
            f"network_times has shape {np.shape(network_times)}; it has to be that of log_snr,"
            f" {np.shape(log_snr)}"
        )
    if isinstance(log_snr, jax.core.Tracer):
        _check_vector("log_snr", log_snr)
        log_snr = widened(log_snr)
        return build_traced(
            jnp.stack([log_snr, jnp.zeros_like(log_snr)]),
            None if network_times is None else jnp.asarray(network_times),
        )
    log_snr = _vector("log_snr", log_snr)
    finite = np.isfinite(log_snr)
    finite[-1] |= np.isneginf(log_snr[-1])
    if not finite.all():
        index = int(np.argmin(finite))
        raise ValueError(
            f"log_snr[{index}] is {log_snr[index]:g}; it has to be finite, and only the last may be"
            " -inf"
        )
    _check_falling("log_snr", log_snr)
    if network_times is not None:
        network_times = np.asarray(network_times)
    return build(-np.logaddexp(0.0, -log_snr), log_snr=log_snr, network_times=network_times)


def _vector(name: str, values: np.ndarray | Sequence[float] | Array) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    _check_vector(name, values)
    return values


def _check_vector(name: str, values: np.ndarray | Array) -> None:
    if values.ndim != 1:
        raise ValueError(f"{name} has shape {values.shape}; it has to be one-dimensional, (T,)")
    check_num_steps(values.shape[0])


def _check_inside(name: str, value: float) -> None:
    if not 0.0 < value < 1.0:
        raise ValueError(f"{name} is {value}; it has to be inside (0, 1)")


def _check_falling(name: str, values: np.ndarray) -> None:
    falls = np.diff(values) < 0.0
    if not falls.all():
        index = int(np.argmin(falls)) + 1
        raise ValueError(
            f"{name}[{index}] is {values[index]:g} after {values[index - 1]:g}; noise grows with t,"
            f" so {name} has to fall"
        )
