r"""Noise schedules: how much signal and how much noise there is at each time.

A schedule of T steps is the chain q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I) of
Ho et al. 2020 (https://arxiv.org/abs/2006.11239, eq. 2), told by its tables. Times run from
t = 0, one step of noise, to t = T - 1, the prior; s = -1 stands for the data themselves.

    alpha_bar_t = prod_{i <= t} (1 - beta_i)
    log_snr_t   = log(alpha_bar_t / (1 - alpha_bar_t))

Tables are built on the host in float64 from log(alpha_bar), which keeps full relative precision
at both ends, and are stored in float32. Differences of two logarithms, which every posterior and
every ELBO weight is made of, would lose most of their digits in float32 between neighbouring
times. The two log tables therefore carry a second float32 table, the part that rounding took
away, and `log_snr_difference` and `log_alpha_bar_difference` use both.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

__all__ = ["Schedule", "cosine", "from_betas", "linear", "linear_log_snr"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Schedule:
    """The tables of one noise schedule, each float32 `[T]`: a frozen pytree, safe to pass to jit.

    Make one with `linear`, `cosine`, `linear_log_snr` or `from_betas`, which check their
    arguments; the constructor itself does not.
    """

    betas: Float[Array, " T"]
    """Variance added by each step, beta_t."""
    alpha_bar: Float[Array, " T"]
    """Signal power left at t, prod(1 - beta)."""
    one_minus_alpha_bar: Float[Array, " T"]
    """Noise power at t; kept apart because 1 - alpha_bar cancels near t = 0."""
    log_alpha_bar: Float[Array, "2 T"]
    """log(alpha_bar): row 0 rounded to float32, row 1 what the rounding left over."""
    log_snr_parts: Float[Array, "2 T"]
    """log(alpha_bar / (1 - alpha_bar)), in the same two parts."""

    @property
    def num_steps(self) -> int:
        """T."""
        return self.betas.shape[-1]

    @property
    def log_snr(self) -> Float[Array, " T"]:
        """log(alpha_bar / (1 - alpha_bar)), natural logarithm."""
        return self.log_snr_parts[0]

    def signal(self, t: Int[Array, " batch"]) -> Float[Array, " batch"]:
        """sqrt(alpha_bar) at `t`; 1 at t = -1."""
        return jnp.sqrt(_look_up(self.alpha_bar, t, before=1.0))

    def beta(self, t: Int[Array, " batch"]) -> Float[Array, " batch"]:
        """beta at `t`, the variance that the step to `t` adds."""
        return _look_up(self.betas, t, before=jnp.nan)

    def noise(self, t: Int[Array, " batch"]) -> Float[Array, " batch"]:
        """sqrt(1 - alpha_bar) at `t`; 0 at t = -1."""
        return jnp.sqrt(self.noise_variance(t))

    def noise_variance(self, t: Int[Array, " batch"]) -> Float[Array, " batch"]:
        """1 - alpha_bar at `t`; 0 at t = -1."""
        return _look_up(self.one_minus_alpha_bar, t, before=0.0)

    def log_snr_difference(
        self, t: Int[Array, " batch"], s: Int[Array, " batch"]
    ) -> Float[Array, " batch"]:
        """log SNR(t) - log SNR(s), to float32's full precision; -inf where s = -1."""
        return _difference(self.log_snr_parts, t, s, before=jnp.inf)

    def log_alpha_bar_difference(
        self, t: Int[Array, " batch"], s: Int[Array, " batch"]
    ) -> Float[Array, " batch"]:
        """log alpha_bar(t) - log alpha_bar(s), to float32's full precision."""
        return _difference(self.log_alpha_bar, t, s, before=0.0)


def linear(num_steps: int, beta_min: float = 1e-4, beta_max: float = 0.02) -> Schedule:
    """Betas evenly spaced from `beta_min` to `beta_max` (Ho et al. 2020, section 4).

    The defaults are the paper's, made for `num_steps` = 1000; they are not rescaled for another T.

    Args:
        num_steps: T, at least 2.
        beta_min: the first beta, in (0, 1).
        beta_max: the last beta, in (0, 1).

    Raises:
        ValueError: T below 2, or a beta outside (0, 1).

    Example:
        >>> from ddpm_jax import schedules
        >>> schedules.linear(1000).num_steps
        1000
    """
    _check_num_steps(num_steps)
    return from_betas(np.linspace(beta_min, beta_max, num_steps, dtype=np.float64))


def cosine(num_steps: int, offset: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """alpha_bar follows a squared cosine (Nichol & Dhariwal 2021, eq. 17).

    alpha_bar(u) = cos^2(pi/2 (u + offset) / (1 + offset)), normalized to 1 at u = 0, read at
    u = (t + 1) / T; betas above `max_beta` are cut to it, as in https://arxiv.org/abs/2102.09672.

    Args:
        num_steps: T, at least 2.
        offset: keeps the first betas from vanishing; at least 0.
        max_beta: the largest beta, in (0, 1).

    Raises:
        ValueError: T below 2, a negative offset, or `max_beta` outside (0, 1).
    """
    _check_num_steps(num_steps)
    if not (offset >= 0.0 and math.isfinite(offset)):
        raise ValueError(f"offset is {offset}; it has to be 0 or more")
    if not 0.0 < max_beta < 1.0:
        raise ValueError(f"max_beta is {max_beta}; it has to be inside (0, 1)")
    # Half-angle form: log cos^2 loses every digit of 1 - cos^2 near u = 0, sin^2 does not.
    angle = 0.5 * math.pi * (np.arange(num_steps + 1) / num_steps + offset) / (1.0 + offset)
    step = np.diff(angle)
    # cos^2(a + d) / cos^2(a) = (cos d - tan a sin d)^2, so beta = (1 - r)(1 + r) with small 1 - r.
    one_minus_ratio = 2.0 * np.sin(0.5 * step) ** 2 + np.tan(angle[:-1]) * np.sin(step)
    betas = one_minus_ratio * (2.0 - one_minus_ratio)
    return from_betas(np.minimum(betas, max_beta))


def linear_log_snr(num_steps: int, log_snr_max: float = 7.0, log_snr_min: float = -8.0) -> Schedule:
    """log SNR falls linearly from `log_snr_max` at t = 0 to `log_snr_min` at t = T - 1.

    The KL terms of the ELBO then all carry the same weight on the squared error of eps, because
    that weight depends on the step in log SNR alone (Kingma et al. 2021, eq. 14,
    https://arxiv.org/abs/2107.00630). `log_snr_max` is best set from the data's grid: noise far
    below the spacing of the grey levels is paid for in KL terms and buys nothing.

    Args:
        num_steps: T, at least 2.
        log_snr_max: log SNR after one step, natural logarithm; above `log_snr_min`.
        log_snr_min: log SNR of the prior.

    Raises:
        ValueError: T below 2, or values that are not finite and falling.
    """
    _check_num_steps(num_steps)
    if not (math.isfinite(log_snr_max) and math.isfinite(log_snr_min)):
        raise ValueError(
            f"log_snr_max is {log_snr_max} and log_snr_min is {log_snr_min}; both have to be finite"
        )
    if log_snr_max <= log_snr_min:
        raise ValueError(
            f"log_snr_max is {log_snr_max}, log_snr_min is {log_snr_min}; noise grows with t, so"
            " log_snr_max has to be the larger"
        )
    log_snr = np.linspace(log_snr_max, log_snr_min, num_steps, dtype=np.float64)
    # alpha_bar = sigmoid(log_snr)
    return _from_logs(-np.logaddexp(0.0, -log_snr), log_snr=log_snr)


def from_betas(betas: np.ndarray) -> Schedule:
    """The schedule of a given chain, betas `[T]` each in (0, 1), read in float64.

    Raises:
        ValueError: not one-dimensional, T below 2, or a beta outside (0, 1), told by its index.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax import schedules
        >>> schedules.from_betas(np.array([0.1, 0.2])).alpha_bar.tolist()
        [0.8999999761581421, 0.7200000286102295]
    """
    betas = np.asarray(betas, dtype=np.float64)
    if betas.ndim != 1:
        raise ValueError(f"betas has shape {betas.shape}; it has to be one-dimensional, (T,)")
    _check_num_steps(betas.shape[0])
    outside = np.flatnonzero(~((betas > 0.0) & (betas < 1.0)))
    if outside.size:
        index = int(outside[0])
        raise ValueError(f"betas[{index}] is {betas[index]:g}; every beta has to be inside (0, 1)")
    return _from_logs(np.cumsum(np.log1p(-betas)), betas=betas)


def _from_logs(
    log_alpha_bar: np.ndarray,
    *,
    betas: np.ndarray | None = None,
    log_snr: np.ndarray | None = None,
) -> Schedule:
    """All tables from log(alpha_bar) in float64; tables that are given are kept as they are."""
    one_minus_alpha_bar = -np.expm1(log_alpha_bar)
    if betas is None:
        betas = -np.expm1(np.diff(log_alpha_bar, prepend=0.0))
    _check_float32(betas, one_minus_alpha_bar)
    if log_snr is None:
        log_snr = log_alpha_bar - np.log(one_minus_alpha_bar)
    return Schedule(
        betas=_float32(betas),
        alpha_bar=_float32(np.exp(log_alpha_bar)),
        one_minus_alpha_bar=_float32(one_minus_alpha_bar),
        log_alpha_bar=_two_parts(log_alpha_bar),
        log_snr_parts=_two_parts(log_snr),
    )


def _check_float32(betas: np.ndarray, one_minus_alpha_bar: np.ndarray) -> None:
    rounded = betas.astype(np.float32)
    inside = (rounded > 0.0) & (rounded < 1.0) & (one_minus_alpha_bar.astype(np.float32) > 0.0)
    if not inside.all():
        t = int(np.argmin(inside))
        raise ValueError(
            f"at t = {t} beta is {betas[t]:.17g} and 1 - alpha_bar {one_minus_alpha_bar[t]:.17g};"
            " rounded to float32, both have to be above 0 and beta below 1"
        )


def _float32(table: np.ndarray) -> jax.Array:
    return jnp.asarray(table.astype(np.float32))


def _two_parts(table: np.ndarray) -> jax.Array:
    rounded = table.astype(np.float32)
    return _float32(np.stack([rounded, table - rounded.astype(np.float64)]))


def _check_num_steps(num_steps: int) -> None:
    if num_steps < 2:
        raise ValueError(f"num_steps is {num_steps}; a schedule has at least T = 2 steps")


def _look_up(table: jax.Array, t: jax.Array, *, before: float) -> jax.Array:
    """`table[t]`; `before` at t = -1; NaN, which nobody overlooks, outside [-1, T)."""
    values = table.at[t].get(
        mode="fill",
        fill_value=jnp.nan,
        wrap_negative_indices=False,
        out_sharding=jax.typeof(t).sharding,  # an explicit mesh wants to be told
    )
    return jnp.where(t == -1, jnp.float32(before), values)


def _difference(parts: jax.Array, t: jax.Array, s: jax.Array, *, before: float) -> jax.Array:
    """table(t) - table(s); the leading parts are close, so their difference is exact."""
    rounded_t, left_over_t = _look_up(parts[0], t, before=before), _look_up(parts[1], t, before=0.0)
    rounded_s, left_over_s = _look_up(parts[0], s, before=before), _look_up(parts[1], s, before=0.0)
    return (rounded_t - rounded_s) + (left_over_t - left_over_s)
