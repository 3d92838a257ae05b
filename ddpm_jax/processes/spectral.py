r"""A process of many modes: linear, Gaussian, and diagonal in one orthonormal basis B.

With a and b per mode, and white eps,

.. math::

    x_t = B^T \big(a_t \odot B x_0 + b_t \odot B \epsilon\big) \tag{1}

Mode k is a chain of its own, x_t = a_{t,k} x_0 + b_{t,k} eps. All that is known of one scalar chain
(`ddpm_jax.forward`) is therefore known of each mode, and none of it needs a^2 + b^2 = 1. What makes
a pair of tables a chain is that no step removes noise: the transition from s to t adds

.. math::

    b_t^2 - \frac{a_t^2}{a_s^2}\, b_s^2
    = b_t^2 \big(1 - \mathrm{SNR}_t / \mathrm{SNR}_s\big) \ge 0, \qquad
    \mathrm{SNR} = a^2 / b^2 \tag{2}

so SNR must not rise in any mode, from any time to the next, and then it does not between any two.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from ddpm_jax import bases
from ddpm_jax.arrays import Value, rows
from ddpm_jax.schedules.build import check_num_steps, two_parts
from ddpm_jax.schedules.tables import difference, look_up, on_host

__all__ = ["Spectral", "build", "check_even", "check_values", "common_shape", "spectral"]

# Logarithms of what float32 holds; XLA takes smaller numbers for 0.
_LEAST = math.log(float(np.finfo(np.float32).tiny))
_LARGEST = math.log(float(np.finfo(np.float32).max))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Spectral(Value):
    """The tables of a process of many modes: a frozen pytree, and a value as a `Schedule` is one.

    `modes` has as many axes as the data, each as long as theirs or 1, where modes share a row. What
    is looked up at times `[batch]` has the shape `[batch, *modes]`. Make one with a constructor of
    `ddpm_jax.processes`, which checks its arguments; the class itself does not.
    """

    log_signal_variance: Float[Array, "2 *T_and_modes"]
    """log a^2 `[2, T, *modes]`: row 0 rounded to float32, row 1 what the rounding left over."""
    log_noise_variance: Float[Array, "2 *T_and_modes"]
    """log b^2, in the same two parts."""
    log_prior_variance: Float[Array, "*modes"]
    """log of the variance of p(x_{T-1}), whose mean is 0, in each mode."""
    network_times: Int[Array, " T"]
    """The time that a network gets at t: t itself, unless times were left out."""
    basis: bases.Basis
    """Where the modes are."""
    zero_terminal_snr: bool = dataclasses.field(default=False, metadata={"static": True})
    """Whether a mode has no signal left at T - 1. A network cannot predict eps then."""
    conditioned: bool = dataclasses.field(default=False, metadata={"static": True})
    """Whether each example has tables of its own: one more axis, `examples`, before T."""

    @property
    def num_steps(self) -> int:
        """T, the number of steps."""
        return self.network_times.shape[-1]

    def signal(self, t: Int[Array, " batch"]) -> Float[Array, "batch *modes"]:
        """The factor a on x_0.

        Args:
            t: times in [-1, T), int32 `[batch]`.

        Returns:
            a, float32 `[batch, *modes]`; 1 at t = -1.
        """
        return self._exp(self.log_signal_variance, t, before=0.0, factor=0.5)

    def signal_variance(self, t: Int[Array, " batch"]) -> Float[Array, "batch *modes"]:
        """a^2.

        Args:
            t: times in [-1, T), int32 `[batch]`.

        Returns:
            a^2, float32 `[batch, *modes]`; 1 at t = -1.
        """
        return self._exp(self.log_signal_variance, t, before=0.0)

    def noise(self, t: Int[Array, " batch"]) -> Float[Array, "batch *modes"]:
        """The factor b on white noise.

        Args:
            t: times in [-1, T), int32 `[batch]`.

        Returns:
            b, float32 `[batch, *modes]`; 0 at t = -1.
        """
        return self._exp(self.log_noise_variance, t, before=-jnp.inf, factor=0.5)

    def noise_variance(self, t: Int[Array, " batch"]) -> Float[Array, "batch *modes"]:
        """b^2.

        Args:
            t: times in [-1, T), int32 `[batch]`.

        Returns:
            b^2, float32 `[batch, *modes]`; 0 at t = -1.
        """
        return self._exp(self.log_noise_variance, t, before=-jnp.inf)

    def power(self, t: Int[Array, " batch"]) -> Float[Array, "batch *modes"]:
        """a^2 + b^2, which is 1 for chains that keep the variance of white data.

        Args:
            t: times in [-1, T), int32 `[batch]`.

        Returns:
            a^2 + b^2, float32 `[batch, *modes]`.
        """
        return self.signal_variance(t) + self.noise_variance(t)

    def beta(self, t: Int[Array, " batch"]) -> Float[Array, "batch *modes"]:
        """The variance that the step to `t` adds.

        Args:
            t: times in [0, T), int32 `[batch]`.

        Returns:
            The variance, float32 `[batch, *modes]`.
        """
        return self.transition_variance(t, t - 1)

    def transition_variance(
        self, t: Int[Array, " batch"], s: Int[Array, " batch"]
    ) -> Float[Array, "batch *modes"]:
        """b_t^2 (1 - SNR_t / SNR_s), the variance that the steps from s to t add.

        Args:
            t: times in [-1, T), int32 `[batch]`.
            s: times s <= t, int32 `[batch]`.

        Returns:
            The variance, float32 `[batch, *modes]`.
        """
        return self.noise_variance(t) * -jnp.expm1(self.log_snr_difference(t, s))

    def snr(self, t: Int[Array, " batch"]) -> Float[Array, "batch *modes"]:
        """a^2 / b^2.

        Args:
            t: times in [-1, T), int32 `[batch]`.

        Returns:
            SNR, float32 `[batch, *modes]`; inf at t = -1, and 0 only where no signal is left.
        """
        log_signal = self._rows(self.log_signal_variance[0], t, before=0.0)
        log_noise = self._rows(self.log_noise_variance[0], t, before=-jnp.inf)
        left_over = self._rows(self.log_signal_variance[1], t, before=0.0) - self._rows(
            self.log_noise_variance[1], t, before=0.0
        )
        log_ratio = log_signal - log_noise
        # What that difference was rounded by (Knuth's two-sum), or an SNR of e^-16 is known to 16
        # last places.
        of_noise = log_signal - log_ratio
        rounding = (log_signal - (log_ratio + of_noise)) + (of_noise - log_noise)
        rounding = jnp.where(jnp.isfinite(log_ratio), rounding, 0.0)
        ratio = jnp.exp(log_ratio) * (1.0 + (left_over + rounding))
        silent = jnp.isneginf(log_signal)
        return jnp.where(silent, ratio, jnp.maximum(ratio, jnp.finfo(jnp.float32).tiny))

    def log_snr_difference(
        self, t: Int[Array, " batch"], s: Int[Array, " batch"]
    ) -> Float[Array, "batch *modes"]:
        """log SNR(t) - log SNR(s), with all digits between neighbouring times.

        Args:
            t: times in [-1, T), int32 `[batch]`.
            s: times s <= t, int32 `[batch]`.

        Returns:
            The difference, at most 0, float32 `[batch, *modes]`; -inf where s = -1, NaN where it
            would rise.
        """
        of_noise = self._difference(self.log_noise_variance, t, s, before=-jnp.inf)
        raw = self.log_alpha_bar_difference(t, s) - of_noise
        # Equal ratios may differ in the last of the digits that two parts hold.
        return jnp.where(raw > 1e-5, jnp.nan, jnp.minimum(raw, 0.0))

    def log_alpha_bar_difference(
        self, t: Int[Array, " batch"], s: Int[Array, " batch"]
    ) -> Float[Array, "batch *modes"]:
        """log a_t^2 - log a_s^2, what the steps from s to t leave of the signal's power.

        Args:
            t: times in [-1, T), int32 `[batch]`.
            s: times in [-1, T), int32 `[batch]`.

        Returns:
            The difference, float32 `[batch, *modes]`.
        """
        return self._difference(self.log_signal_variance, t, s, before=0.0)

    def log_noise_difference(
        self, t: Int[Array, " batch"], s: Int[Array, " batch"]
    ) -> Float[Array, "batch *modes"]:
        """log b_t^2 - log b_s^2, with all digits between neighbouring times.

        Args:
            t: times in [-1, T), int32 `[batch]`.
            s: times in [-1, T), int32 `[batch]`.

        Returns:
            The difference, float32 `[batch, *modes]`; inf where s = -1.
        """
        return self._difference(self.log_noise_variance, t, s, before=-jnp.inf)

    def network_time(self, t: Int[Array, " batch"]) -> Int[Array, " batch"]:
        """The time that a network gets at `t`.

        Args:
            t: times in [0, T), int32 `[batch]`.

        Returns:
            `network_times[t]`, int32 `[batch]`.
        """
        return rows(self.network_times, t, mode="clip")

    def prior(
        self, batch: int
    ) -> tuple[Float[Array, "batch *modes"], Float[Array, "batch *modes"]]:
        """The variance of p(x_{T-1}), and the share of it that q(x_{T-1} | x_0) lacks.

        Args:
            batch: the number of examples.

        Returns:
            The variance and the share, float32 `[batch, *modes]` each.
        """
        last = jnp.full(batch, self.num_steps - 1, jnp.int32)
        log_prior = self._each_example(self.log_prior_variance, batch)
        log_ratio = self._rows(self.log_noise_variance[0], last, before=0.0) - log_prior
        log_ratio = log_ratio + self._rows(self.log_noise_variance[1], last, before=0.0)
        return jnp.exp(log_prior), -jnp.expm1(log_ratio)

    def mean_log_snr(self) -> np.ndarray:
        """The mean over the modes of log SNR, natural logarithm, on the host.

        Returns:
            The mean, float64 `[T]`.

        Raises:
            TypeError: the process is traced.
        """
        log_snr = on_host(self.log_signal_variance) - on_host(self.log_noise_variance)
        time_axis = 1 if self.conditioned else 0
        return log_snr.mean(axis=tuple(i for i in range(log_snr.ndim) if i != time_axis))

    def _exp(self, parts: Array, t: Array, *, before: float, factor: float = 1.0) -> Array:
        rounded, left_over = (
            self._rows(parts[0], t, before=before),
            self._rows(parts[1], t, before=0.0),
        )
        # Far below the least number, times what the rounding left: 0 and not NaN.
        return jnp.exp(factor * rounded) * (1.0 + factor * left_over)

    def _rows(self, table: Array, t: Array, *, before: float) -> Array:
        if not self.conditioned:
            return look_up(table, t, before=before)
        (t,) = _by_example(table, t)
        rows = jax.vmap(lambda table, t: look_up(table, t, before=before))(table, t)
        return rows.reshape(t.size, *table.shape[2:])

    def _difference(self, parts: Array, t: Array, s: Array, *, before: float) -> Array:
        if not self.conditioned:
            return difference(parts, t, s, before=before)
        t, s = _by_example(parts[0], t, s)
        rows = jax.vmap(
            lambda parts, t, s: difference(parts, t, s, before=before), in_axes=(1, 0, 0)
        )(parts, t, s)
        return rows.reshape(t.size, *parts.shape[3:])

    def _each_example(self, table: Array, batch: int) -> Array:
        if not self.conditioned:
            return jnp.broadcast_to(table[None], (batch, *table.shape))
        examples, *modes = table.shape
        rows = jnp.broadcast_to(table[:, None], (examples, _rows_of_each(batch, examples), *modes))
        return rows.reshape(batch, *modes)  # `repeat` is not for explicit meshes


def spectral(
    signal_variance: ArrayLike,
    noise_variance: ArrayLike,
    basis: bases.Basis | None = None,
    *,
    prior_variance: ArrayLike | None = None,
) -> Spectral:
    r"""A process by its tables a^2 and b^2, read in float64 on the host.

    .. math::

        x_t = B^T \big(a_t \odot B x_0 + b_t \odot B \epsilon\big)

    Args:
        signal_variance: a^2, `[T, *modes]`, above 0, and 0 at T - 1 at most. `modes` has as many
            axes as the data, each as long as theirs or 1. It may be less than float32 holds.
        noise_variance: b^2, `[T, *modes]`, above 0 and finite, in float32.
        basis: B, where the modes are; by default they are the pixels.
        prior_variance: of p(x_{T-1}), `[*modes]`; by default a^2 + b^2 at T - 1, what data of unit
            variance have there.

    Returns:
        The process.

    Raises:
        ValueError: shapes that do not fit, values outside their range, a signal-to-noise ratio that
            rises: the variance of that step would be negative; or tables that are not even,
            lambda(k) = lambda(-k), in a Fourier basis.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax import processes
        >>> power = np.linspace(0.9, 0.1, 9)[:, None] ** np.array([1.0, 2.0])  # two pixels
        >>> processes.spectral(power, 1.0 - power).num_steps
        9
    """
    log_signal = _log("signal_variance", signal_variance)
    log_noise = _log("noise_variance", noise_variance)
    log_prior = None if prior_variance is None else _log("prior_variance", prior_variance)
    return build(log_signal, log_noise, basis, log_prior_variance=log_prior)


def build(
    log_signal_variance: np.ndarray,
    log_noise_variance: np.ndarray,
    basis: bases.Basis | None = None,
    *,
    log_prior_variance: np.ndarray | None = None,
) -> Spectral:
    """All tables from log a^2 and log b^2 in float64, `[T, *modes]`, checked.

    Raises:
        ValueError: as `spectral`.
    """
    basis = bases.identity() if basis is None else basis
    of_signal, of_noise = log_signal_variance.shape, log_noise_variance.shape
    wrong = (
        f"signal_variance has shape {of_signal} and noise_variance {of_noise}; both are"
        " [T, *modes], with axes of modes as long as the other's or 1"
    )
    if not of_signal or of_signal[:1] != of_noise[:1] or len(of_signal) != len(of_noise):
        raise ValueError(wrong)
    shape = common_shape(wrong, of_signal, of_noise)
    check_num_steps(shape[0])
    basis.check_modes("signal_variance", shape[1:])
    log_signal, log_noise = (
        np.broadcast_to(table, shape) for table in (log_signal_variance, log_noise_variance)
    )
    check_values(log_signal, log_noise)
    for name, table in (("signal_variance", log_signal), ("noise_variance", log_noise)):
        check_even(name, np.exp(table), basis)
    if log_prior_variance is None:
        log_prior_variance = np.logaddexp(log_signal[-1], log_noise[-1])
    if not np.isfinite(log_prior_variance).all():
        raise ValueError("prior_variance is 0 or not finite somewhere; it has to be above 0")
    wrong = f"prior_variance has shape {log_prior_variance.shape}; the modes are {shape[1:]}"
    if common_shape(wrong, log_prior_variance.shape, shape[1:]) != shape[1:]:
        raise ValueError(wrong)
    return Spectral(
        log_signal_variance=two_parts(log_signal),
        log_noise_variance=two_parts(log_noise),
        log_prior_variance=jnp.asarray(
            np.broadcast_to(log_prior_variance, shape[1:]).astype(np.float32)
        ),
        network_times=jnp.arange(shape[0], dtype=jnp.int32),
        basis=basis,
        zero_terminal_snr=bool(np.isneginf(log_signal[-1]).any()),
    )


def check_values(log_signal: np.ndarray, log_noise: np.ndarray) -> None:
    """Raises ValueError unless the tables `[T, *modes]` are those of a chain."""
    inside = np.isfinite(log_signal) & (log_signal < _LARGEST)
    inside[-1] |= np.isneginf(log_signal[-1])
    if not inside.all():
        where = _first(~inside)
        raise ValueError(
            f"signal_variance at (t, *mode) = {where} is {np.exp(log_signal[where]):g}; it has to"
            " be above 0 and finite in float32, and may be 0 at T - 1 alone"
        )
    inside = (log_noise > _LEAST) & (log_noise < _LARGEST)
    if not inside.all():
        where = _first(~inside)
        raise ValueError(
            f"noise_variance at (t, *mode) = {where} is {np.exp(log_noise[where]):g}; it has to be"
            " above 0 and finite in float32: a mode without noise has no density, and no step back"
        )
    rise = np.diff(log_signal - log_noise, axis=0)
    if (rise > 1e-12).any():
        where = _first(rise > 1e-12)
        t = where[0] + 1
        raise ValueError(
            f"the signal-to-noise ratio rises from t = {t - 1} to {t} in mode {where[1:]}, by a"
            f" factor of {np.exp(rise[where]):.9g}: the variance of that step would be negative"
        )


def check_even(name: str, tables: np.ndarray, basis: bases.Basis) -> None:
    """Raises ValueError unless `tables` `[T, *modes]` fit a Fourier basis: are lambda(-k) at k.

    Those of everything stationary are, and `Basis.diagonal` reads no others.
    """
    if basis.kind != "fourier" or tables.ndim - 1 <= max(basis.axes):
        return
    axes = tuple(axis + 1 for axis in basis.axes if tables.shape[axis + 1] > 1)
    mirrored = np.roll(np.flip(tables, axes), 1, axes)
    if not np.allclose(mirrored, tables, rtol=1e-5, atol=0.0):
        raise ValueError(
            f"{name} is not even: in the Fourier basis lambda(k) has to be lambda(-k), the"
            " frequency n - k of n"
        )


def common_shape(otherwise: str, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """What the shapes broadcast to; raises ValueError(otherwise) where they do not."""
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        raise ValueError(otherwise) from None


def _first(where: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(where)[0])


def _log(name: str, values: ArrayLike) -> np.ndarray:
    table = np.asarray(values, np.float64)
    if table.size == 0 or not (table >= 0.0).all():
        raise ValueError(f"{name} is empty, negative or NaN somewhere; variances are not")
    with np.errstate(divide="ignore"):  # `check_values` refuses 0 where it may not be
        return np.asarray(np.log(table))  # of a single number NumPy makes no array


def _by_example(table: Array, *times: Array) -> list[Array]:
    """Each of `times` as `[examples, rows of each]`: rows of one example are neighbours.

    They are split over the devices as the examples of `table` are; only an explicit mesh needs it,
    and times that were made there are whole on every device.
    """
    examples, sharding = table.shape[0], jax.typeof(table).sharding
    split = []
    for t in times:
        t = t.reshape(examples, _rows_of_each(t.shape[0], examples))
        if sharding.spec[0] is not None:
            where = NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0], None))
            t = jax.sharding.reshard(t, where)
        split.append(t)
    return split


def _rows_of_each(batch: int, examples: int) -> int:
    if batch % examples:
        raise ValueError(
            f"the batch has {batch} rows, and the process tables for {examples} examples: rows have"
            " to be as many, or a multiple with neighbours that share an example"
        )
    return batch // examples
