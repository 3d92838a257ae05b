r"""The contract of a process whose modes do not mix, and how its tables weigh data and noise.

Such a process is a pair of tables, how much signal is left and how much noise was added, at each
time and for each mode of an orthonormal basis B:

.. math::

    x_t = B^T \big(a_t \odot B x_0 + b_t \odot B \epsilon\big) \tag{1}

A `Schedule` has a single mode that all pixels share, a `Spectral` has many. Every formula of this
library is written once, per mode, and serves both, and any other class with the members of `Modal`.

The weights are those of the equations of `ddpm_jax.forward`. A chain of other noise with the first
two moments of a schedule weighs as the schedule does.
"""

import functools
import operator
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddpm_jax import bases
from ddpm_jax.arrays import per_example
from ddpm_jax.processes.chain import Chain, NoClosedForm

__all__ = [
    "Modal",
    "Process",
    "check_modal",
    "check_process",
    "mix",
    "one_minus_snr_ratio",
    "posterior_weights",
    "step_weights",
    "transition_weights",
]

Weights = Float[Array, "batch *modes"]
Times = Int[Array, " batch"]


@runtime_checkable
class Modal(Protocol):
    """A process of modes: every function of the library takes it.

    Times t and s are int32 `[batch]`, at least -1, which stands for the data. `modes` has as many
    axes as the data, each as long as theirs or 1; it has none where all values share one mode.
    `spectral` makes one from tables, without a class. A class may also have the methods of a
    `Chain`; the functions of `ddpm_jax.forward` then call these.
    """

    @property
    def num_steps(self) -> int:
        """T, the number of steps."""

    @property
    def basis(self) -> bases.Basis:
        """Where the modes are."""

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether a mode has no signal left at T - 1."""

    @property
    def network_times(self) -> Int[Array, " T"]:
        """The time that a network gets at each t; t itself, unless times were left out."""

    def network_time(self, t: Times) -> Times:
        """The time that a network gets at `t`.

        Args:
            t: times in [0, T).

        Returns:
            `network_times[t]`, int32 `[batch]`.
        """

    def signal(self, t: Times) -> Weights:
        """The factor a on x_0.

        Args:
            t: times.

        Returns:
            a, `[batch, *modes]`; 1 at t = -1.
        """

    def signal_variance(self, t: Times) -> Weights:
        """a^2.

        Args:
            t: times.

        Returns:
            a^2, `[batch, *modes]`; 1 at t = -1.
        """

    def noise(self, t: Times) -> Weights:
        """The factor b on white noise.

        Args:
            t: times.

        Returns:
            b, `[batch, *modes]`; 0 at t = -1.
        """

    def noise_variance(self, t: Times) -> Weights:
        """b^2.

        Args:
            t: times.

        Returns:
            b^2, `[batch, *modes]`; 0 at t = -1.
        """

    def power(self, t: Times) -> Weights:
        """a^2 + b^2.

        Args:
            t: times.

        Returns:
            a^2 + b^2, `[batch, *modes]`.
        """

    def snr(self, t: Times) -> Weights:
        """a^2 / b^2.

        Args:
            t: times.

        Returns:
            SNR, `[batch, *modes]`; inf at t = -1, and 0 only where no signal is left.
        """

    def beta(self, t: Times) -> Weights:
        """The variance that the step to `t` adds.

        Args:
            t: times in [0, T).

        Returns:
            The variance, `[batch, *modes]`.
        """

    def transition_variance(self, t: Times, s: Times) -> Weights:
        """The variance that the steps from s to t add.

        Args:
            t: times.
            s: times s <= t.

        Returns:
            The variance, `[batch, *modes]`.
        """

    def log_snr_difference(self, t: Times, s: Times) -> Weights:
        """log SNR(t) - log SNR(s), with all digits between neighbouring times.

        Args:
            t: times.
            s: times s <= t.

        Returns:
            The difference, `[batch, *modes]`; -inf where s = -1.
        """

    def log_alpha_bar_difference(self, t: Times, s: Times) -> Weights:
        """log a_t^2 - log a_s^2, with all digits between neighbouring times.

        Args:
            t: times.
            s: times.

        Returns:
            The difference, `[batch, *modes]`.
        """

    def log_noise_difference(self, t: Times, s: Times) -> Weights:
        """log b_t^2 - log b_s^2, with all digits between neighbouring times.

        Args:
            t: times.
            s: times s <= t.

        Returns:
            The difference, `[batch, *modes]`; inf where s = -1.
        """

    def prior(self, batch: int) -> tuple[Weights, Weights]:
        """The variance of p(x_{T-1}), and the share of it that q(x_{T-1} | x_0) lacks.

        Args:
            batch: the number of examples.

        Returns:
            The variance and the share, `[batch, *modes]` each.
        """

    def mean_log_snr(self) -> np.ndarray:
        """The mean over the modes of log SNR, natural logarithm, on the host.

        Returns:
            The mean, float64 `[T]`.
        """


Process = Modal | Chain
"""Anything that `q_chain` can walk."""


def check_process(name: str, process: Any) -> None:
    """Raises TypeError unless `process` is one."""
    missing = _missing(process, Modal)
    if missing is None or _missing(process, Chain) is None:
        return
    if hasattr(process, "basis"):
        raise TypeError(
            f"{name} is a {type(process).__name__} without `{missing}`; a process of modes has all"
            " members of ddpm_jax.processes.Modal"
        )
    raise TypeError(
        f"{name} is a {type(process).__name__}; it has to be a schedule or another process"
        " (ddpm_jax.schedules and ddpm_jax.processes make them)"
    )


def check_modal(name: str, process: Any) -> None:
    """Raises NoClosedForm for a chain without modes, TypeError for what is no process at all."""
    check_process(name, process)
    if _missing(process, Modal) is not None:
        raise NoClosedForm(
            f"{name} is a {type(process).__name__}, which has no modes; this function takes a"
            " schedule, or another process with `signal` and `noise` of each mode"
        )


def _missing(process: Any, contract: type) -> str | None:
    """The first member of a Protocol that `process` does not have."""
    members = (name for name in vars(contract) if not name.startswith("_"))
    return next((name for name in members if not hasattr(process, name)), None)


def mix(
    process: Modal,
    *terms: tuple[Float[Array, "batch *modes"] | float, Float[Array, "batch *data"]],
) -> Float[Array, "batch *data"]:
    """sum_i w_i x_i for pairs (w_i, x_i): weights of each mode, arrays of the data.

    B^T (sum_i w_i * B x_i), in the dtype of the first array. A number weighs all modes alike.
    """
    dtype, basis = jax.dtypes.canonicalize_dtype(terms[0][1].dtype), process.basis
    if all(isinstance(weight, int | float) for weight, _ in terms):  # the same in every basis
        basis = bases.identity()
    by_mode = [(weights, basis.to_modes(x)) for weights, x in terms]
    weighted = [per_example(weights, modes) * modes for weights, modes in by_mode]
    return basis.to_data(functools.reduce(operator.add, weighted)).astype(dtype)


def step_weights(process: Modal, t: Times) -> tuple[Weights, Weights]:
    """Of x_{t-1} and of the noise, in x_t."""
    # sqrt(1 - beta) by the logarithm: 1 - beta cancels at the noisy end.
    keep = jnp.exp(0.5 * process.log_alpha_bar_difference(t, t - 1))
    return keep, jnp.sqrt(process.beta(t))


def transition_weights(process: Modal, t: Times, s: Times) -> tuple[Weights, Weights]:
    """Of x_s and of the noise, in x_t: eq. (3)."""
    keep = jnp.exp(0.5 * process.log_alpha_bar_difference(t, s))
    return keep, jnp.sqrt(process.transition_variance(t, s))


def posterior_weights(process: Modal, t: Times, s: Times) -> tuple[Weights, Weights]:
    """Of x_0 and of x_t, in the mean of x_s: eq. (2)."""
    weight_x0 = process.signal(s) * one_minus_snr_ratio(process, t, s)
    signal_ratio = jnp.exp(0.5 * process.log_alpha_bar_difference(t, s))
    return weight_x0, signal_ratio * process.noise_variance(s) / process.noise_variance(t)


def one_minus_snr_ratio(process: Modal, t: Times, s: Times) -> Weights:
    """1 - SNR_t / SNR_s, and 1 at s = -1; NaN where s is not the earlier time."""
    one_minus_ratio = -jnp.expm1(process.log_snr_difference(t, s))
    return jnp.where(per_example(s < t, one_minus_ratio), one_minus_ratio, jnp.nan)
