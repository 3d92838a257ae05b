r"""A schedule's tables, and how they are read.

A schedule of T steps is the chain of Ho et al. 2020, eq. 2,

.. math::

    q(x_t \mid x_{t-1}) = \mathcal{N}\big(\sqrt{1 - \beta_t}\, x_{t-1},\ \beta_t I\big) \tag{1}

given by its tables. Times run from t = 0, one step of noise, to t = T - 1, the prior; s = -1 stands
for the data themselves.

.. math::

    \bar\alpha_t = \prod_{i \le t} (1 - \beta_i) \tag{2}

.. math::

    \log \mathrm{SNR}_t = \log \frac{\bar\alpha_t}{1 - \bar\alpha_t} \tag{3}

Tables are built on the host in float64 from log(alpha_bar), which keeps full relative precision at
both ends, and are stored in float32. Differences of two logarithms, which every posterior and every
ELBO weight contains, would lose most of their digits in float32 between neighbouring times. The two
log tables therefore carry a second float32 table, the part that rounding took away, and
`log_snr_difference` and `log_alpha_bar_difference` use both.

References:
    Ho et al. 2020, https://arxiv.org/abs/2006.11239
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddpm_jax import bases
from ddpm_jax.arrays import Value, root, rows
from ddpm_jax.checks import check_count

__all__ = [
    "Schedule",
    "build",
    "check_num_steps",
    "check_schedule",
    "difference",
    "look_up",
    "on_host",
    "two_parts",
]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Schedule(Value):
    """The tables of one noise schedule, each float32 `[T]`: a frozen pytree, safe to pass to jit.

    Make one with a constructor of `ddpm_jax.schedules` (`linear`, `cosine`, `from_betas`, ...),
    which checks its arguments; the class itself does not.

    It is a value: two are equal if all their tables are, bit for bit, and `==` is one bool. It can
    be an argument of jit as it is, its tables traced, or a static argument, its tables constants;
    a key of a dictionary; an attribute of a `flax.nnx.Module`, which holds its tables as data
    (import `flax.nnx` before the schedule is made). Comparing traced ones is a TypeError.

    Example:
        >>> import functools, jax
        >>> from ddpm_jax import schedules
        >>> schedules.cosine(10) == schedules.cosine(10)
        True
        >>> @functools.partial(jax.jit, static_argnames="schedule")
        ... def last(x, schedule):
        ...     return x * schedule.num_steps
        >>> float(last(1.0, schedules.cosine(10)))
        10.0
    """

    betas: Float[Array, " T"]
    """Variance added by each step, beta_t."""
    alpha_bar: Float[Array, " T"]
    """Signal power left at t, prod(1 - beta)."""
    one_minus_alpha_bar: Float[Array, " T"]
    """Noise power at t; a table of its own because 1 - alpha_bar cancels near t = 0."""
    log_alpha_bar_parts: Float[Array, "2 T"]
    """log(alpha_bar): row 0 rounded to float32, row 1 what the rounding left over."""
    log_snr_parts: Float[Array, "2 T"]
    """log(alpha_bar / (1 - alpha_bar)), in the same two parts."""
    network_times: Int[Array, " T"]
    """The time that a network gets at t: t itself, unless the schedule was `respaced`."""
    zero_terminal_snr: bool = dataclasses.field(default=False, metadata={"static": True})
    """Whether no signal at all is left at T - 1. A network cannot predict eps then."""

    @property
    def num_steps(self) -> int:
        """T, the number of steps."""
        return self.betas.shape[-1]

    @property
    def log_alpha_bar(self) -> Float[Array, " T"]:
        """log(alpha_bar), natural logarithm, float32 `[T]`."""
        return self.log_alpha_bar_parts[0]

    @property
    def log_snr(self) -> Float[Array, " T"]:
        """log(alpha_bar / (1 - alpha_bar)), natural logarithm, float32 `[T]`."""
        return self.log_snr_parts[0]

    @property
    def basis(self) -> bases.Basis:
        """Pixels: one mode that all of them share has no basis of its own."""
        return bases.identity()

    def signal(self, t: Int[Array, " batch"]) -> Float[Array, " batch"]:
        """sqrt(alpha_bar), the factor a on x_0.

        Args:
            t: times in [-1, T), int32 `[batch]`.

        Returns:
            a, float32 `[batch]`; 1 at t = -1.

        Example:
            >>> import jax.numpy as jnp
            >>> from ddpm_jax import schedules
            >>> schedules.constant(3, beta=0.75).signal(jnp.array([-1, 0, 1])).tolist()
            [1.0, 0.5, 0.25]
        """
        return root(self.signal_variance(t))

    def signal_variance(self, t: Int[Array, " batch"]) -> Float[Array, " batch"]:
        """alpha_bar, a^2.

        Args:
            t: times in [-1, T), int32 `[batch]`.

        Returns:
            alpha_bar, float32 `[batch]`; 1 at t = -1.
        """
        return look_up(self.alpha_bar, t, before=1.0)

    def noise(self, t: Int[Array, " batch"]) -> Float[Array, " batch"]:
        """sqrt(1 - alpha_bar), the factor b on the noise.

        Args:
            t: times in [-1, T), int32 `[batch]`.

        Returns:
            b, float32 `[batch]`; 0 at t = -1.
        """
        return root(self.noise_variance(t))

    def noise_variance(self, t: Int[Array, " batch"]) -> Float[Array, " batch"]:
        """1 - alpha_bar, b^2.

        Args:
            t: times in [-1, T), int32 `[batch]`.

        Returns:
            1 - alpha_bar, float32 `[batch]`; 0 at t = -1.
        """
        return look_up(self.one_minus_alpha_bar, t, before=0.0)

    def beta(self, t: Int[Array, " batch"]) -> Float[Array, " batch"]:
        """The variance that the step to `t` adds.

        Args:
            t: times in [0, T), int32 `[batch]`.

        Returns:
            beta, float32 `[batch]`; NaN at t = -1.
        """
        return look_up(self.betas, t, before=jnp.nan)

    def transition_variance(
        self, t: Int[Array, " batch"], s: Int[Array, " batch"]
    ) -> Float[Array, " batch"]:
        """1 - alpha_bar_t / alpha_bar_s, the variance that the steps from s to t add.

        Args:
            t: times in [-1, T), int32 `[batch]`.
            s: times s <= t, int32 `[batch]`.

        Returns:
            The variance, float32 `[batch]`; NaN for s > t.
        """
        added = -jnp.expm1(self.log_alpha_bar_difference(t, s))
        return jnp.where(s <= t, added, jnp.nan)

    def power(self, t: Int[Array, " batch"]) -> Float[Array, " batch"]:
        """a^2 + b^2, which is 1 for a schedule, without rounding.

        Args:
            t: times in [-1, T), int32 `[batch]`.

        Returns:
            1, float32 `[batch]`.
        """
        return jnp.ones_like(self.noise_variance(t))

    def prior(self, batch: int) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
        """The variance of p(x_{T-1}), and the share of it that q(x_{T-1} | x_0) lacks.

        Args:
            batch: the number of examples.

        Returns:
            1 and alpha_bar_{T-1}, float32 `[batch]` each.
        """
        missing = jnp.broadcast_to(self.alpha_bar[-1], batch)
        return jnp.ones_like(missing), missing

    def mean_log_snr(self) -> np.ndarray:
        """log SNR on the host, natural logarithm.

        Returns:
            log SNR, float64 `[T]`.

        Raises:
            TypeError: the schedule is traced.
        """
        return on_host(self.log_snr_parts)

    def snr(self, t: Int[Array, " batch"]) -> Float[Array, " batch"]:
        """alpha_bar / (1 - alpha_bar), a^2 / b^2.

        Args:
            t: times in [-1, T), int32 `[batch]`.

        Returns:
            SNR, float32 `[batch]`; inf at t = -1, and 0 only where no signal is left.
        """
        ratio = self.signal_variance(t) / self.noise_variance(t)
        # alpha_bar may underflow long before a signal is gone, and weights divide by this.
        silent = jnp.isneginf(look_up(self.log_snr, t, before=jnp.inf))
        return jnp.where(silent, ratio, jnp.maximum(ratio, jnp.finfo(jnp.float32).tiny))

    def network_time(self, t: Int[Array, " batch"]) -> Int[Array, " batch"]:
        """The time that a network gets at `t`: that of the schedule that it was trained with.

        Args:
            t: times in [0, T), int32 `[batch]`.

        Returns:
            `network_times[t]`, int32 `[batch]`; of a time outside [0, T), that of the nearest end.
        """
        return rows(self.network_times, t, mode="clip")

    def log_snr_difference(
        self, t: Int[Array, " batch"], s: Int[Array, " batch"]
    ) -> Float[Array, " batch"]:
        """log SNR(t) - log SNR(s), to float32's full precision.

        Args:
            t: times in [-1, T), int32 `[batch]`.
            s: times in [-1, T), int32 `[batch]`.

        Returns:
            The difference, float32 `[batch]`; -inf where s = -1.
        """
        return difference(self.log_snr_parts, t, s, before=jnp.inf)

    def log_alpha_bar_difference(
        self, t: Int[Array, " batch"], s: Int[Array, " batch"]
    ) -> Float[Array, " batch"]:
        """log alpha_bar(t) - log alpha_bar(s), to float32's full precision.

        Args:
            t: times in [-1, T), int32 `[batch]`.
            s: times in [-1, T), int32 `[batch]`.

        Returns:
            The difference, float32 `[batch]`.
        """
        return difference(self.log_alpha_bar_parts, t, s, before=0.0)

    def log_noise_difference(
        self, t: Int[Array, " batch"], s: Int[Array, " batch"]
    ) -> Float[Array, " batch"]:
        r"""log(1 - alpha_bar(t)) - log(1 - alpha_bar(s)), to float32's full precision.

        .. math::

            \frac{b_t^2}{b_s^2} = 1 + \Big(1 - \frac{a_t^2}{a_s^2}\Big)\, \mathrm{SNR}_s

        Args:
            t: times in [-1, T), int32 `[batch]`.
            s: times s <= t, int32 `[batch]`.

        Returns:
            The difference, float32 `[batch]`; inf where s = -1.
        """
        return jnp.log1p(self.transition_variance(t, s) * self.snr(s))


def build(
    log_alpha_bar: np.ndarray,
    *,
    betas: np.ndarray | None = None,
    log_snr: np.ndarray | None = None,
    network_times: np.ndarray | None = None,
) -> Schedule:
    """All tables from log(alpha_bar) in float64; given tables are taken as they are.

    -inf at the end is a chain that leaves no signal.

    Raises:
        ValueError: tables that float32 rounds out of their range.
    """
    one_minus_alpha_bar = -np.expm1(log_alpha_bar)
    if betas is None:
        betas = -np.expm1(np.diff(log_alpha_bar, prepend=0.0))
    if log_snr is None:
        log_snr = log_alpha_bar - np.log(one_minus_alpha_bar)
    if network_times is None:
        network_times = np.arange(len(log_alpha_bar))
    zero_terminal_snr = bool(np.isneginf(log_alpha_bar[-1]))
    _check_float32(betas, one_minus_alpha_bar, zero_terminal_snr)
    return Schedule(
        betas=_float32(betas),
        alpha_bar=_float32(np.exp(log_alpha_bar)),
        one_minus_alpha_bar=_float32(one_minus_alpha_bar),
        log_alpha_bar_parts=two_parts(log_alpha_bar),
        log_snr_parts=two_parts(log_snr),
        network_times=jnp.asarray(network_times.astype(np.int32)),
        zero_terminal_snr=zero_terminal_snr,
    )


def on_host(parts: jax.Array) -> np.ndarray:
    """A table of two parts as one float64 array.

    Raises:
        TypeError: the table is traced; schedules are made and transformed outside of `jit`.
    """
    if isinstance(parts, jax.core.Tracer):
        raise TypeError(
            "schedule is an argument of the function being traced; a schedule is transformed, and"
            " its times are chosen, outside of jit"
        )
    return np.asarray(parts, np.float64).sum(axis=0)


def check_num_steps(num_steps: int) -> None:
    """Raises TypeError unless it is an int, ValueError unless there are at least two steps."""
    check_count("num_steps", num_steps)
    if num_steps < 2:
        raise ValueError(f"num_steps is {num_steps}; a schedule has at least T = 2 steps")


def check_schedule(schedule: Any) -> None:
    """Raises TypeError unless `schedule` is one, and not another process."""
    if not isinstance(schedule, Schedule):
        raise TypeError(
            f"schedule is a {type(schedule).__name__}; it has to be a Schedule"
            " (ddpm_jax.schedules makes them)"
        )


def _check_float32(
    betas: np.ndarray, one_minus_alpha_bar: np.ndarray, zero_terminal_snr: bool
) -> None:
    least = np.finfo(np.float32).tiny  # XLA takes smaller numbers for 0
    inside = (betas >= least) & (betas.astype(np.float32) < 1.0) & (one_minus_alpha_bar >= least)
    if zero_terminal_snr:
        inside[-1] = True  # the last beta is 1
    if not inside.all():
        t = int(np.argmin(inside))
        raise ValueError(
            f"at t = {t} beta is {betas[t]:.17g} and 1 - alpha_bar {one_minus_alpha_bar[t]:.17g};"
            " rounded to float32, both have to be above 0 and beta below 1"
        )


def two_parts(table: np.ndarray) -> jax.Array:
    """A float64 table as two of float32: rounded, and what the rounding left over."""
    rounded = table.astype(np.float32)
    left_over = np.zeros_like(table)
    np.subtract(table, rounded, out=left_over, where=np.isfinite(table))
    return _float32(np.stack([rounded, left_over]))


def look_up(table: Float[Array, "T *modes"], t: Array, *, before: float) -> Array:
    """`table[t]`; `before` at t = -1; NaN outside [-1, T)."""
    modes = (1,) * (table.ndim - 1)
    return jnp.where((t == -1).reshape(t.shape + modes), jnp.float32(before), rows(table, t))


def difference(parts: Float[Array, "2 T *modes"], t: Array, s: Array, *, before: float) -> Array:
    """table(t) - table(s); the leading parts are close, so their difference is exact."""
    rounded_t, left_over_t = look_up(parts[0], t, before=before), look_up(parts[1], t, before=0.0)
    rounded_s, left_over_s = look_up(parts[0], s, before=before), look_up(parts[1], s, before=0.0)
    return (rounded_t - rounded_s) + (left_over_t - left_over_s)


def _float32(table: np.ndarray) -> jax.Array:
    return jnp.asarray(table.astype(np.float32))
