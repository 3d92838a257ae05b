r"""A schedule whose log SNR is a monotone network of few numbers, which training can learn.

log SNR falls from its maximum at t = 0 to its minimum at t = T - 1, along a straight line and
sigmoids, all of positive weight, of u = t / (T - 1):

.. math::

    g(u) = e^{\ell} u + \sum_k e^{h_k} \sigma\big(e^{s_k} (u - c_k)\big), \qquad
    \log \mathrm{SNR}_t = \log \mathrm{SNR}_{\max}
    - (\log \mathrm{SNR}_{\max} - \log \mathrm{SNR}_{\min}) \frac{g(u) - g(0)}{g(1) - g(0)} \tag{1}

This is the network of Kingma et al. 2021 (appendix H), a linear layer plus two more with a sigmoid
between them, without the constants that eq. (1) cancels, and with weights that exp makes positive.

An ELBO of many steps depends on the two ends of log SNR; what lies between changes it by O(1 / T)
alone (section 5.2 of the paper). But the loss of one step, at a time drawn uniformly, varies the
less the more evenly the steps share the bound. A schedule that is learned to that end draws noise
levels as importance sampling of times does with a fixed schedule: with a density over log SNR, that
of its times, and weights that cancel it (appendix I).

Every posterior depends on differences of log SNR between neighbours, so those are computed
directly, from

.. math::

    \sigma(a) - \sigma(b) = \sigma(a)\, \sigma(-b) \big(1 - e^{b - a}\big), \tag{2}

and log SNR itself is their sum, which a second float32 table completes.

References:
    Kingma et al. 2021, https://arxiv.org/abs/2107.00630
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.arrays import is_traced
from ddpm_jax.checks import check_count
from ddpm_jax.schedules.build import build_traced, check_num_steps
from ddpm_jax.schedules.constructors import from_log_snr
from ddpm_jax.schedules.tables import Schedule

__all__ = ["Endpoints", "Monotone", "from_monotone", "monotone", "monotone_steps"]

_LEAST_WIDTH = 8
_OUTSIDE = 2
"""So many sigmoids rise before u = 0 and after u = 1, so that the sum is straight in between."""


class Monotone(NamedTuple):
    """What lies between the ends of log SNR: the parameters of eq. (1), arrays or NumPy's."""

    line: Float[Array | np.ndarray, ""]
    """Logarithm of the line's weight, l."""
    heights: Float[Array | np.ndarray, " width"]
    """Logarithms of the sigmoids' weights, h."""
    slopes: Float[Array | np.ndarray, " width"]
    """Logarithms of their slopes, s."""
    centres: Float[Array | np.ndarray, " width"]
    """Where they rise, c: 0 is the first time and 1 the last."""


class Endpoints(NamedTuple):
    """The two ends of log SNR, natural logarithm: numbers, or traced scalars."""

    log_snr_max: Any
    """At t = 0."""
    log_snr_min: Any
    """At t = T - 1; below `log_snr_max`."""


def monotone(width: int) -> Monotone:
    """Parameters of a log SNR that falls linearly up to one percent of each step.

    Half of it falls along the line, the other half along the sigmoids, whose centres are evenly
    spaced.

    Args:
        width: number of sigmoids, at least 8.

    Returns:
        The parameters, float64.

    Raises:
        TypeError, ValueError: `width` is no whole number of 8 or more.

    Example:
        >>> from ddpm_jax import schedules
        >>> steps = schedules.monotone_steps(schedules.monotone(32), num_steps=5)
        >>> [round(float(step), 2) for step in steps]
        [0.25, 0.25, 0.25, 0.25]
    """
    check_count("width", width)
    if width < _LEAST_WIDTH:
        raise ValueError(f"width is {width}; it has to be at least {_LEAST_WIDTH}")
    inside = width - 1 - 2 * _OUTSIDE  # intervals between centres
    return Monotone(
        line=np.zeros(()),
        heights=np.full(width, -np.log(inside)),
        slopes=np.full(width, np.log(2.5 * inside)),  # smooth, and no wider than it has to be
        centres=(np.arange(width) - _OUTSIDE) / inside,
    )


def monotone_steps(params: Monotone, num_steps: int) -> Array | np.ndarray:
    r"""The share of the range of log SNR that each step crosses.

    .. math::

        \frac{g(t / (T - 1)) - g((t - 1) / (T - 1))}{g(1) - g(0)}, \qquad 1 \le t < T

    with g of eq. (1) in `ddpm_jax.schedules.learned`.

    Args:
        params: the parameters; traced ones are computed by JAX in float32, others on the host in
            float64.
        num_steps: T, at least 2.

    Returns:
        Positive numbers with the sum 1, `[T - 1]`.

    Raises:
        TypeError, ValueError: T below 2 or no whole number.

    Example:
        >>> from ddpm_jax import schedules
        >>> schedules.monotone_steps(schedules.monotone(8), num_steps=3).tolist()  # symmetric
        [0.5, 0.5]
    """
    check_num_steps(num_steps)
    traced = is_traced(params)
    xp: Any = jnp if traced else np
    line, heights, slopes, centres = (
        xp.asarray(leaf, np.float32 if traced else np.float64) for leaf in params
    )
    heights, slope, centres = heights[None], xp.exp(slopes)[None], centres[None]
    intervals = num_steps - 1
    u = xp.arange(num_steps, dtype=line.dtype)[:, None] / intervals
    x = slope * (u - centres)
    # The logarithms of eq. (2)'s sigmoids do not underflow far from a centre.
    log_sigmoids = -xp.logaddexp(0.0, -x[1:]) - xp.logaddexp(0.0, x[:-1])
    rises = -xp.expm1(-slope / intervals) * xp.exp(heights + log_sigmoids)
    rise = xp.exp(line) / intervals + xp.sum(rises, axis=1)
    shares: Array | np.ndarray = rise / xp.sum(rise)
    return shares


def from_monotone(
    params: Monotone,
    endpoints: Endpoints,
    num_steps: int,
    *,
    network_positions: tuple[Endpoints, int] | None = None,
) -> Schedule:
    r"""The schedule of a monotone log SNR; gradients of traced parameters pass.

    Networks get the position of the log SNR on a straight line, a float: a network then sees the
    same number at the same noise level, while the schedule is learned and with another T. With the
    ends and the T that a network is trained with, it is

    .. math::

        \tau_t = \frac{\log \mathrm{SNR}_{\max} - \log \mathrm{SNR}_t}
        {\log \mathrm{SNR}_{\max} - \log \mathrm{SNR}_{\min}} (T - 1)

    that is, t itself for `linear_log_snr`.

    Args:
        params: the parameters. If one of them or an end is traced, the tables are traced, of
            float32's precision; otherwise they are made on the host in float64.
        endpoints: the ends of log SNR, which the tables have exactly.
        num_steps: T, at least 2.
        network_positions: the ends and the T that positions are measured by; by default
            `endpoints` and `num_steps`.

    Returns:
        The schedule.

    Raises:
        TypeError, ValueError: T below 2 or no whole number; ends that are not traced, and not
            finite and falling; on the host also steps so small that log SNR does not fall.

    Example:
        >>> from ddpm_jax import schedules
        >>> ends = schedules.Endpoints(7.0, -8.0)
        >>> schedule = schedules.from_monotone(schedules.monotone(32), ends, 250)
        >>> schedule.log_snr[0].item(), schedule.log_snr[-1].item()
        (7.0, -8.0)

    References:
        Kingma et al. 2021, https://arxiv.org/abs/2107.00630
    """
    steps = monotone_steps(params, num_steps)
    trained_ends, trained_steps = network_positions or (endpoints, num_steps)
    for name, ends in (("endpoints", endpoints), ("network_positions", trained_ends)):
        _check_ends(name, ends)
    first, last = trained_ends
    per_log_snr = (trained_steps - 1) / (first - last)
    if not is_traced((params, endpoints)):
        high, low = (float(end) for end in endpoints)
        log_snr = high - (high - low) * np.cumsum(np.concatenate([[0.0], np.asarray(steps)]))
        log_snr[-1] = low
        positions = (first - log_snr) * per_log_snr
        return from_log_snr(log_snr, network_times=positions.astype(np.float32))
    parts = _parts(jnp.asarray(steps), *(jnp.asarray(end, jnp.float32) for end in endpoints))
    return build_traced(parts, (first - parts[0]) * per_log_snr)


def _check_ends(name: str, ends: Endpoints) -> None:
    """Raises ValueError unless the ends fall and are finite, if they are known."""
    if is_traced(ends):
        return
    high, low = (float(end) for end in ends)
    if not (np.isfinite(high) and np.isfinite(low) and high > low):
        raise ValueError(
            f"{name} is ({high}, {low}); the first has to be the larger, and both finite"
        )


def _parts(steps: Array, high: Array, low: Array) -> Float[Array, "2 T"]:
    """Log SNR from `high` to `low`, rounded and what the rounding left over."""
    log_snr, left_over = _summed(jnp.concatenate([high[None], (low - high) * steps]))
    # The steps sum to 1 up to a rounding, which is spread over all of them: none is far off.
    excess = jax.lax.stop_gradient((log_snr[-1] - low) + left_over[-1])
    left_over -= excess * jax.lax.stop_gradient((high - log_snr) / (high - low))
    return jnp.stack([log_snr.at[-1].set(low), left_over.at[-1].set(0.0)])


def _summed(values: Float[Array, " T"]) -> tuple[Array, Array]:
    """Cumulative sums, rounded and what the rounding left over, which has no gradient."""

    def add(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        (a, a_rest), (b, b_rest) = left, right
        total = a + b
        of_b = total - a
        rounding = (a - (total - of_b)) + (b - of_b)  # exact: Knuth's two-sum
        rest = jax.lax.stop_gradient(rounding + a_rest + b_rest)
        whole = total + rest
        return whole, jax.lax.stop_gradient(rest - (whole - total))

    whole, rest = jax.lax.associative_scan(add, (values, jnp.zeros_like(values)))
    return whole, rest
