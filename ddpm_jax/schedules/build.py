"""Makes the tables of a schedule, on the host or while JAX traces.

On the host, tables are built in float64 from the logarithms of a^2 and b^2, which keep full
relative precision at both ends, and are rounded to float32 once.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.checks import check_count
from ddpm_jax.schedules.tables import Schedule

__all__ = ["build", "build_traced", "check_num_steps", "log_one_minus_exp", "two_parts"]


def build(
    log_alpha_bar: np.ndarray,
    *,
    betas: np.ndarray | None = None,
    log_noise: np.ndarray | None = None,
    log_snr: np.ndarray | None = None,
    prior_variance: float | None = None,
    network_times: np.ndarray | None = None,
) -> Schedule:
    """All tables from log(a^2) in float64, and log(b^2) unless variance is preserved.

    Given tables are taken as they are. -inf at the end of log(a^2) is a chain that leaves no
    signal.

    Raises:
        ValueError: tables that float32 rounds out of their range.
    """
    preserves_variance = log_noise is None
    if log_noise is None:
        log_noise = log_one_minus_exp(log_alpha_bar)
        noise_power = -np.expm1(log_alpha_bar)
        if betas is None:
            betas = -np.expm1(np.diff(log_alpha_bar, prepend=0.0))
    else:
        noise_power = np.exp(log_noise)
    if log_snr is None:
        log_snr = log_alpha_bar - log_noise
    if betas is None:
        betas = noise_power * -np.expm1(np.diff(log_snr, prepend=np.inf))
    if network_times is None:
        network_times = np.arange(len(log_alpha_bar))
    zero_terminal_snr = bool(np.isneginf(log_alpha_bar[-1]))
    alpha_bar = np.exp(log_alpha_bar)
    _check_float32(betas, alpha_bar, noise_power, preserves_variance, zero_terminal_snr)
    if preserves_variance:
        prior_variance, missing = 1.0, alpha_bar[-1]
    else:
        if prior_variance is None:
            prior_variance = alpha_bar[-1] + noise_power[-1]
        # Of the number that float32 holds: it is p's, and q lacks a share of that one.
        prior_variance = float(np.float32(prior_variance))
        missing = -math.expm1(log_noise[-1] - math.log(prior_variance))
    whole = np.issubdtype(network_times.dtype, np.integer)
    return Schedule(
        betas=_float32(betas),
        alpha_bar=_float32(alpha_bar),
        noise_power=_float32(noise_power),
        log_alpha_bar_parts=two_parts(log_alpha_bar),
        log_noise_parts=two_parts(log_noise),
        log_snr_parts=two_parts(log_snr),
        prior_table=_float32(np.array([prior_variance, missing])),
        network_times=jnp.asarray(network_times, jnp.int32 if whole else jnp.float32),
        zero_terminal_snr=zero_terminal_snr,
        preserves_variance=preserves_variance,
    )


def build_traced(log_snr_parts: Float[Array, "2 T"], network_times: Array | None) -> Schedule:
    """The schedule of a log SNR that JAX computed: it preserves variance, and gradients pass.

    What the rounding of log SNR left over may be 0. The tables have float32's precision: their
    differences between neighbouring times are as good as those of `log_snr_parts`.
    """
    log_snr, left_over = log_snr_parts
    log_alpha_bar, log_noise = -jax.nn.softplus(-log_snr), -jax.nn.softplus(log_snr)
    # Not by `sigmoid`, whose slope s (1 - s) cancels near 1.
    alpha_bar, noise_power = jnp.exp(log_alpha_bar), jnp.exp(log_noise)
    of_signal = jnp.stack([log_alpha_bar, noise_power * left_over])
    of_noise = jnp.stack([log_noise, -alpha_bar * left_over])
    falls = jnp.diff(log_snr) + jnp.diff(left_over)
    # 1 - alpha_bar_t / alpha_bar_{t-1}, by SNR: b_t^2 (1 - SNR_t / SNR_{t-1}).
    betas = jnp.concatenate([noise_power[:1], noise_power[1:] * -jnp.expm1(falls)])
    if network_times is None:
        network_times = jnp.arange(log_snr.size, dtype=jnp.int32)
    return Schedule(
        betas=betas,
        alpha_bar=alpha_bar,
        noise_power=noise_power,
        log_alpha_bar_parts=of_signal,
        log_noise_parts=of_noise,
        log_snr_parts=log_snr_parts,
        prior_table=jnp.stack([jnp.ones_like(alpha_bar[-1]), alpha_bar[-1]]),
        network_times=network_times,
    )


def check_num_steps(num_steps: int) -> None:
    """Raises TypeError unless it is an int, ValueError unless there are at least two steps."""
    check_count("num_steps", num_steps)
    if num_steps < 2:
        raise ValueError(f"num_steps is {num_steps}; a schedule has at least T = 2 steps")


def two_parts(table: np.ndarray) -> jax.Array:
    """A float64 table as two of float32: rounded, and what the rounding left over."""
    rounded = table.astype(np.float32)
    left_over = np.zeros_like(table)
    np.subtract(table, rounded, out=left_over, where=np.isfinite(table))
    return _float32(np.stack([rounded, left_over]))


def log_one_minus_exp(x: np.ndarray) -> np.ndarray:
    """log(1 - e^x) for x < 0, with all digits at both ends; 0 at -inf."""
    near = x > -math.log(2.0)
    small, large = np.where(near, x, -1.0), np.where(near, -1.0, x)
    with np.errstate(divide="ignore"):  # where x rounds to 0
        return np.where(near, np.log(-np.expm1(small)), np.log1p(-np.exp(large)))


def _check_float32(
    betas: np.ndarray,
    alpha_bar: np.ndarray,
    noise_power: np.ndarray,
    preserves_variance: bool,
    zero_terminal_snr: bool,
) -> None:
    least, largest = np.finfo(np.float32).tiny, np.finfo(np.float32).max
    below = 1.0 if preserves_variance else largest
    with np.errstate(over="ignore"):
        inside = (betas >= least) & (betas.astype(np.float32) < below)  # XLA takes less for 0
    if zero_terminal_snr:
        inside[-1] = True  # the last beta is b^2
    inside &= (noise_power >= least) & (noise_power < largest)
    if not (alpha_bar < largest).all():
        t = int(np.argmax(alpha_bar >= largest))
        raise ValueError(f"at t = {t} a^2 is {alpha_bar[t]:g}; it has to be finite in float32")
    if not inside.all():
        t = int(np.argmin(inside))
        name = "1 - alpha_bar" if preserves_variance else "b^2"
        limit = "beta below 1" if preserves_variance else "finite"
        raise ValueError(
            f"at t = {t} beta is {betas[t]:.17g} and {name} {noise_power[t]:.17g}; rounded to"
            f" float32, both have to be above 0 and {limit}"
        )


def _float32(table: np.ndarray) -> jax.Array:
    return jnp.asarray(table.astype(np.float32))
