r"""Exact likelihoods: the probability flow is a change of variables from the data to the prior.

Every chain has an ordinary differential equation with the same marginals
(Song et al. 2021, section 4.3). In the angle phi = arctan(b / a), with a = r cos phi and b = r sin
phi, and for y = x / r, it is

.. math::

    \frac{dy}{d\phi} = \frac{\hat{v}(x, \phi)}{r} \tag{1}

because y_t = cos(phi) x_0 + sin(phi) eps has that slope, and by the change of variables (their
eq. 39) the density along it obeys

.. math::

    \frac{d \log p(y)}{d\phi} = -\mathrm{div}_y\, \frac{\hat{v}}{r} \tag{2}

.. math::

    \log p(x_0) = \log p(y_T) + \int \mathrm{div}_y\, \frac{\hat{v}}{r}\ d\phi \tag{3}

If variance is preserved, r^2 = a^2 + b^2 is 1, and log p(y_T) that of a standard normal. A process
of many modes has an angle and an r for each, and turns them at once: the divergence is then a sum
over modes, each with the turn that its own angle makes.

This is the flow of DDIM (`samplers.ddim`) in other coordinates. In sigma = b / a and x / a, the
usual ones, the last steps of a chain span decades of sigma and the divergence falls as 1 / sigma
there, which no coarse rule integrates; phi ends at pi / 2, v_hat is of the size of the data all the
way, and a schedule that leaves no signal at all is no exception.

A network takes integer times only, so the grid is fixed and Heun's method, of second order, is the
solver. The first piece, from the data at phi = 0, where no network was trained, to the first time
has a rule of its own. There v_hat, which is -tan(phi) (score + x) if variance is preserved, is odd
in phi, so the integral is half of phi times the slope at its end, up to phi^4 for a density that is
smooth on that scale.

The divergence is Hutchinson's estimate (Grathwohl et al. 2019), for independent signs z:

.. math::

    \mathrm{div}\, v = \mathrm{E}_z\Big[z^T \frac{\partial v}{\partial x} z\Big] \tag{4}

The flow itself does not depend on z. So the signs are fresh at each evaluation, which is as
unbiased as one draw for the whole way, as adaptive solvers need it, and lets the errors along the
way average out.

References:
    - Song et al. 2021, https://arxiv.org/abs/2011.13456
    - Grathwohl et al. 2019, https://arxiv.org/abs/1810.01367
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ddpm_jax.arrays import data_axes, per_example, widened
from ddpm_jax.checks import (
    check_count,
    check_float,
    check_key,
    check_level_range,
    check_result,
    check_vector,
)
from ddpm_jax.compiled import call_compiled
from ddpm_jax.forward import convert
from ddpm_jax.losses.elbo import bits_per_nat
from ddpm_jax.predictions import Predicts
from ddpm_jax.processes import Modal
from ddpm_jax.reverse import check_predicts

__all__ = ["FlowLikelihood", "dequantize", "flow_bits_per_dim"]


class FlowLikelihood(NamedTuple):
    """Likelihood of each example by the probability flow."""

    bits_per_dim: Float[Array, " batch"]
    """Bits per dimension, `[batch]`: a bound for grey levels, a density for continuous data."""
    log_density: Float[Array, " batch"]
    """log p of the data, dequantized if they have levels, in nats, `[batch]`."""
    x_T: Float[Array, "batch *data"]
    """Where the flow leaves each example at the first of the times, `[batch, ...]`."""


def dequantize(
    key: Key[Array, ""], x0: Float[Array, "batch *data"], levels: int
) -> Float[Array, "batch *data"]:
    r"""Grey levels spread evenly over the bins that they stand for.

    .. math::

        x_0 + (u - \tfrac12)\, w, \qquad w = \frac{2}{\mathrm{levels} - 1}

    w is the spacing of `levels` values in [-1, 1] and u is uniform on [0, 1). A density p of such
    data in d dimensions bounds the probability of the levels by Jensen's inequality
    (Theis et al. 2016, section 3.1):

    .. math::

        \log_2 P(x_0) \ge \mathrm{E}_u\big[\log_2 p(x_0 + (u - \tfrac12) w)\big] + d \log_2 w

    Args:
        key: typed random key.
        x0: data, `[batch, ...]`, on the grid of `levels` values in [-1, 1].
        levels: grey levels, at least 2.

    Returns:
        The data, shaped as `x0`, within w / 2 of it, in its dtype.

    Raises:
        TypeError, ValueError: `x0` not floating point, `key` not a typed key, or `levels` below 2.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ddpm_jax.likelihood import dequantize
        >>> x0 = jnp.array([[-1.0, 0.0, 1.0]])
        >>> bool(jnp.all(jnp.abs(dequantize(jax.random.key(0), x0, levels=3) - x0) <= 0.5))
        True

    References:
        Theis et al. 2016, https://arxiv.org/abs/1511.01844
    """
    check_float("x0", x0)
    check_key("key", key)
    check_level_range("x0", x0)
    width = _bin_width(levels)
    return x0 + width * jax.random.uniform(key, x0.shape, x0.dtype, -0.5, 0.5)


def flow_bits_per_dim(
    process: Modal,
    predict: Callable[[Float[Array, "batch *data"], Int[Array, " batch"]], Array],
    key: Key[Array, ""],
    x0: Float[Array, "batch *data"],
    times: Int[Array, " steps"],
    *,
    predicts: Predicts,
    levels: int | None,
    num_probes: int = 1,
) -> FlowLikelihood:
    r"""-log2 p(x0) / dim of the probability flow, unbiased up to the steps of the grid.

    .. math::

        -\frac{1}{d \log 2} \Big[ \log p(y_T)
        + \int \mathrm{div}_y\, \frac{\hat{v}}{r}\ d\phi \Big]

    Eq. (1) to (4) of `ddpm_jax.likelihood.flow`; Song et al. 2021, section 4.3. log_density is
    exact but for an error of second order in the steps and for Hutchinson's noise, whose variance
    falls as 1 / num_probes. Calls `predict` with its derivative 2 len(times) - 1 times. A network
    that was trained on grey levels without dequantization has a density that is concentrated at the
    levels; the bound of dequantized data is then loose.

    Args:
        process: a schedule, or another process of modes.
        predict: `(x_t, t) -> prediction`, differentiable, the network with its parameters bound.
        key: typed random key: for the dequantization, and for the signs at each time.
        x0: data, `[batch, ...]`; with `levels`, on their grid in [-1, 1], and dequantized here.
        times: falling times in [0, T), integers `[steps]`, as for samplers, from T - 1 to 0;
            followed upward. At the first of them x is taken to be a draw of the prior. Where they
            do not fall, the result is NaN.
        predicts: what `predict` returns, see `ddpm_jax.predictions`.
        levels: grey levels of the data, at least 2; None for continuous data.
        num_probes: sign vectors for each divergence. All of them go through the derivative at once.

    Returns:
        Bits per dimension, nats of the density, and the images at the end of the flow.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name, eps with a schedule
            of zero terminal SNR, no times, or `num_probes` below 1.
        NoClosedForm: a chain without modes.

    References:
        Song et al. 2021, https://arxiv.org/abs/2011.13456
    """
    check_float("x0", x0)
    check_key("key", key)
    check_vector("times", times)
    check_predicts(process, predicts)
    if times.shape[0] < 1:
        raise ValueError("times has shape (0,); a grid of samplers.time_grid has at least one")
    check_count("num_probes", num_probes)
    if num_probes < 1:
        raise ValueError(f"num_probes is {num_probes}; it has to be at least 1")
    if levels is not None:
        check_level_range("x0", x0)

    to_bits = bits_per_nat(x0)

    def slopes(key: Array, y: Array, time: Array) -> tuple[Array, Array]:
        return _slopes(process, predict, key, y, time, predicts=predicts, num_probes=num_probes)

    def run(key: Array, x0: Array, times: Array) -> FlowLikelihood:
        key_bins, *keys = jax.random.split(key, 4)
        x = widened(x0) if levels is None else dequantize(key_bins, widened(x0), levels)
        rising = times[::-1]
        y, integral = _follow(process, slopes, keys, x, rising)
        power = process.power(_each(rising[-1], x))
        log_density = _log_prior(process, y, power) + integral
        log_density = jnp.where(jnp.all(jnp.diff(rising) > 0), log_density, jnp.nan)
        bits = -log_density * to_bits
        if levels is not None:
            bits = bits - math.log2(_bin_width(levels))
        x_T = process.basis.to_data(per_example(jnp.sqrt(power), y) * y)
        return FlowLikelihood(bits, log_density, x_T)

    return call_compiled(run, key, x0, times)


def _follow(
    process: Modal, slopes: Callable[..., Any], keys: list[Array], x: Array, times: Array
) -> tuple[Array, Array]:
    """y_T by modes, and the integral in eq. (3), along the rising `times`."""
    key_first, key_start, key_end = keys

    def step(
        state: tuple[Array, Array], ends: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array], None]:
        (y, integral), (s, t) = state, ends
        turn = _turn(process, _each(s, x), _each(t, x), x)
        v_s, divergence_s = slopes(key_start, y, s)
        v_t, divergence_t = slopes(key_end, y + turn * v_s, t)
        y = y + 0.5 * turn * (v_s + v_t)
        added = 0.5 * turn * (divergence_s + divergence_t)
        return (y, integral + jnp.sum(added, axis=data_axes(y))), None

    y, first = process.basis.to_modes(x), times[0]
    v, divergence = slopes(key_first, y, first)
    t = _each(first, x)
    half_turn = 0.5 * per_example(jnp.arctan2(process.noise(t), process.signal(t)), x)
    state = y + half_turn * v, jnp.sum(half_turn * divergence, axis=data_axes(y))
    return jax.lax.scan(step, state, (times[:-1], times[1:]))[0]


def _slopes(
    process: Modal,
    predict: Callable[[Array, Array], Array],
    key: Array,
    y: Array,
    time: Array,
    *,
    predicts: Predicts,
    num_probes: int,
) -> tuple[Array, Array]:
    """v_hat / r by modes, and an estimate of each mode's own part of the divergence."""
    t = _each(time, y)

    def v_hat(y: Array) -> Array:
        r = per_example(jnp.sqrt(process.power(t)), y)
        x = process.basis.to_data(r * y)
        prediction = predict(x, process.network_time(t))
        check_result("predict", prediction, x.shape)
        v = convert(process, prediction, x, t, source=predicts, target="v")
        return process.basis.to_modes(v) / r

    def probe(key: Array) -> tuple[Array, Array]:
        signs = jax.random.rademacher(key, y.shape, y.dtype)
        v, along = jax.jvp(v_hat, (y,), (signs,))
        return v, signs * along

    keys = jax.random.split(jax.random.fold_in(key, time), num_probes)
    v, divergence = jax.vmap(probe)(keys)
    return v[0], jnp.mean(divergence, axis=0)


def _turn(process: Modal, s: Array, t: Array, like: Array) -> Array:
    """phi_t - phi_s by its sine and cosine, which keep the digits of a short turn."""
    (a_s, b_s), (a_t, b_t) = ((process.signal(i), process.noise(i)) for i in (s, t))
    sine = -a_s * b_t * jnp.expm1(0.5 * process.log_snr_difference(t, s))
    return per_example(jnp.arctan2(sine, a_s * a_t + b_s * b_t), like)


def _log_prior(process: Modal, y: Array, power: Array) -> Array:
    """log p(y_T): x_T = r y_T is the prior's, whose deviation y_T is measured in."""
    prior_variance, _ = process.prior(y.shape[0])
    scale = jnp.broadcast_to(per_example(jnp.sqrt(power / prior_variance), y), y.shape)
    log_prior = jnp.sum(jnp.log(scale) - 0.5 * jnp.square(scale * y), axis=data_axes(y))
    return log_prior - 0.5 * math.prod(y.shape[1:]) * math.log(2.0 * math.pi)


def _each(t: Array, x: Array) -> Array:
    """A scalar time for each example."""
    return jnp.broadcast_to(t, x.shape[:1])


def _bin_width(levels: int) -> float:
    check_count("levels", levels)
    if levels < 2:
        raise ValueError(f"levels is {levels}; there are at least 2 grey levels")
    return 2.0 / (levels - 1)
