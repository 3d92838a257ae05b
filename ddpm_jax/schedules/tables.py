r"""A schedule's tables, and how they are read.

A schedule of T steps is a Gaussian chain that treats all of x alike, with a factor a_t on the data
and a factor b_t on the noise:

.. math::

    x_t = a_t x_0 + b_t \epsilon, \qquad
    q(x_t \mid x_{t-1}) = \mathcal{N}\Big(\frac{a_t}{a_{t-1}}\, x_{t-1},\ \beta_t I\Big),
    \qquad \beta_t = b_t^2 \Big(1 - \frac{\mathrm{SNR}_t}{\mathrm{SNR}_{t-1}}\Big) \tag{1}

Times run from t = 0, one step of noise, to t = T - 1, the prior; s = -1 stands for the data
themselves. The signal-to-noise ratio falls from each time to the next:

.. math::

    \log \mathrm{SNR}_t = \log \frac{a_t^2}{b_t^2} \tag{2}

DDPM's chain (Ho et al. 2020, eq. 2) preserves variance, a^2 + b^2 = 1, and has

.. math::

    a_t^2 = \bar\alpha_t = \prod_{i \le t} (1 - \beta_i), \qquad
    b_t^2 = 1 - \bar\alpha_t \tag{3}

Two chains of the same SNR differ in the scale of x_t alone, by the factor of their
sqrt(a^2 + b^2). A denoiser of the one is a denoiser of the other, and the prior and KL terms agree
(Kingma et al. 2021, section 3.3). The decoder at t = 0 has the variance b_0^2, and differs a little
where a_0 does. The scale matters to the network, whose input it is.

`ddpm_jax.schedules.build` makes the tables. Differences of two logarithms, which every posterior
and every ELBO weight contains, would lose most of their digits in float32 between neighbouring
times. The log tables therefore carry a second float32 table, the part that rounding took away, and
`log_snr_difference`, `log_alpha_bar_difference` and `log_noise_difference` use both.

References:
    - Ho et al. 2020, https://arxiv.org/abs/2006.11239
    - Kingma et al. 2021, https://arxiv.org/abs/2107.00630
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddpm_jax import bases
from ddpm_jax.arrays import Value, root, rows

__all__ = [
    "Schedule",
    "check_preserves_variance",
    "check_schedule",
    "difference",
    "look_up",
    "on_host",
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
    """Signal power left at t, a^2; prod(1 - beta) where variance is preserved."""
    noise_power: Float[Array, " T"]
    """Noise power at t, b^2; a table of its own because 1 - alpha_bar cancels near t = 0."""
    log_alpha_bar_parts: Float[Array, "2 T"]
    """log(a^2): row 0 rounded to float32, row 1 what the rounding left over."""
    log_noise_parts: Float[Array, "2 T"]
    """log(b^2), in the same two parts."""
    log_snr_parts: Float[Array, "2 T"]
    """log(a^2 / b^2), in the same two parts."""
    prior_table: Float[Array, "2"]
    """The variance of p(x_{T-1}), and the share of it that q(x_{T-1} | x_0) lacks."""
    network_times: Int[Array, " T"] | Float[Array, " T"]
    """The time that a network gets at t: t itself, unless the schedule was `respaced` or given
    others."""
    zero_terminal_snr: bool = dataclasses.field(default=False, metadata={"static": True})
    """Whether no signal at all is left at T - 1. A network cannot predict eps then."""
    preserves_variance: bool = dataclasses.field(default=True, metadata={"static": True})
    """Whether a^2 + b^2 is 1 at all times."""

    @property
    def num_steps(self) -> int:
        """T, the number of steps."""
        return self.betas.shape[-1]

    @property
    def log_alpha_bar(self) -> Float[Array, " T"]:
        """log(a^2), natural logarithm, float32 `[T]`."""
        return self.log_alpha_bar_parts[0]

    @property
    def log_snr(self) -> Float[Array, " T"]:
        """log(a^2 / b^2), natural logarithm, float32 `[T]`."""
        return self.log_snr_parts[0]

    @property
    def basis(self) -> bases.Basis:
        """Pixels: one mode that all of them share has no basis of its own."""
        return bases.identity()

    def signal(self, t: Int[Array, " batch"]) -> Float[Array, " batch"]:
        """The factor a on x_0, sqrt(alpha_bar).

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
        """a^2, alpha_bar.

        Args:
            t: times in [-1, T), int32 `[batch]`.

        Returns:
            a^2, float32 `[batch]`; 1 at t = -1.
        """
        return look_up(self.alpha_bar, t, before=1.0)

    def noise(self, t: Int[Array, " batch"]) -> Float[Array, " batch"]:
        """The factor b on the noise.

        Args:
            t: times in [-1, T), int32 `[batch]`.

        Returns:
            b, float32 `[batch]`; 0 at t = -1.
        """
        return root(self.noise_variance(t))

    def noise_variance(self, t: Int[Array, " batch"]) -> Float[Array, " batch"]:
        """b^2, which is 1 - alpha_bar where variance is preserved.

        Args:
            t: times in [-1, T), int32 `[batch]`.

        Returns:
            b^2, float32 `[batch]`; 0 at t = -1.
        """
        return look_up(self.noise_power, t, before=0.0)

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
        r"""The variance that the steps from s to t add.

        .. math::

            b_t^2 \big(1 - \mathrm{SNR}_t / \mathrm{SNR}_s\big)

        It is 1 - alpha_bar_t / alpha_bar_s where variance is preserved.

        Args:
            t: times in [-1, T), int32 `[batch]`.
            s: times s <= t, int32 `[batch]`.

        Returns:
            The variance, float32 `[batch]`; NaN for s > t.
        """
        if self.preserves_variance:
            added = -jnp.expm1(self.log_alpha_bar_difference(t, s))
        else:
            added = self.noise_variance(t) * -jnp.expm1(self.log_snr_difference(t, s))
        return jnp.where(s <= t, added, jnp.nan)

    def power(self, t: Int[Array, " batch"]) -> Float[Array, " batch"]:
        """a^2 + b^2: 1 without rounding where variance is preserved.

        Args:
            t: times in [-1, T), int32 `[batch]`.

        Returns:
            a^2 + b^2, float32 `[batch]`.
        """
        if self.preserves_variance:
            return jnp.ones_like(self.noise_variance(t))
        return self.signal_variance(t) + self.noise_variance(t)

    def prior(self, batch: int) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
        """The variance of p(x_{T-1}), and the share of it that q(x_{T-1} | x_0) lacks.

        Args:
            batch: the number of examples.

        Returns:
            The variance and the share, float32 `[batch]` each: 1 and alpha_bar_{T-1} where variance
            is preserved.
        """
        variance, missing = self.prior_table
        return jnp.broadcast_to(variance, batch), jnp.broadcast_to(missing, batch)

    def mean_log_snr(self) -> np.ndarray:
        """log SNR on the host, natural logarithm.

        Returns:
            log SNR, float64 `[T]`.

        Raises:
            TypeError: the schedule is traced.
        """
        return on_host(self.log_snr_parts)

    def snr(self, t: Int[Array, " batch"]) -> Float[Array, " batch"]:
        """a^2 / b^2.

        Args:
            t: times in [-1, T), int32 `[batch]`.

        Returns:
            SNR, float32 `[batch]`; inf at t = -1, and 0 only where no signal is left.
        """
        ratio = self.signal_variance(t) / self.noise_variance(t)
        # alpha_bar may underflow long before a signal is gone, and weights divide by this.
        silent = jnp.isneginf(look_up(self.log_snr, t, before=jnp.inf))
        return jnp.where(silent, ratio, jnp.maximum(ratio, jnp.finfo(jnp.float32).tiny))

    def network_time(
        self, t: Int[Array, " batch"]
    ) -> Int[Array, " batch"] | Float[Array, " batch"]:
        """The time that a network gets at `t`: that of the schedule that it was trained with.

        Args:
            t: times in [0, T), int32 `[batch]`.

        Returns:
            `network_times[t]`, `[batch]`; of a time outside [0, T), that of the nearest end.
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
        """log b(t)^2 - log b(s)^2, to float32's full precision.

        Args:
            t: times in [-1, T), int32 `[batch]`.
            s: times s <= t, int32 `[batch]`.

        Returns:
            The difference, float32 `[batch]`; inf where s = -1.
        """
        return difference(self.log_noise_parts, t, s, before=-jnp.inf)


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


def check_schedule(schedule: Any) -> None:
    """Raises TypeError unless `schedule` is one, and not another process."""
    if not isinstance(schedule, Schedule):
        raise TypeError(
            f"schedule is a {type(schedule).__name__}; it has to be a Schedule"
            " (ddpm_jax.schedules makes them)"
        )


def check_preserves_variance(name: str, schedule: Schedule) -> None:
    """Raises ValueError unless a^2 + b^2 is 1 at all times."""
    if not schedule.preserves_variance:
        raise ValueError(
            f"{name} does not preserve variance: a^2 + b^2 is not 1 at all times, as it is for"
            " schedules of betas, alpha_bar or log SNR"
        )


def look_up(table: Float[Array, "T *modes"], t: Array, *, before: float) -> Array:
    """`table[t]`; `before` at t = -1; NaN outside [-1, T)."""
    modes = (1,) * (table.ndim - 1)
    return jnp.where((t == -1).reshape(t.shape + modes), jnp.float32(before), rows(table, t))


def difference(parts: Float[Array, "2 T *modes"], t: Array, s: Array, *, before: float) -> Array:
    """table(t) - table(s); the leading parts are close, so their difference is exact."""
    rounded_t, left_over_t = look_up(parts[0], t, before=before), look_up(parts[1], t, before=0.0)
    rounded_s, left_over_s = look_up(parts[0], s, before=before), look_up(parts[1], s, before=0.0)
    return (rounded_t - rounded_s) + (left_over_t - left_over_s)
