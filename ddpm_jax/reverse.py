r"""The reverse process p: its variance, fixed or learned.

p(x_s | x_t) is a Gaussian. Its mean is that of `forward.q_posterior` with the network's x0_hat in
the place of x_0. There are three choices for its variance. "small" is the posterior's own:

.. math::

    \sigma^2_{\mathrm{small}} = b_s^2 \big(1 - \mathrm{SNR}_t / \mathrm{SNR}_s\big) \tag{1}

"large" is that of the step itself, its beta:

.. math::

    \sigma^2_{\mathrm{large}} = b_t^2 \big(1 - \mathrm{SNR}_t / \mathrm{SNR}_s\big) \tag{2}

"learned_range" lies between them in the logarithm, with u the network's second output:

.. math::

    \log \sigma^2_{\mathrm{learned}}
    = u \log \sigma^2_{\mathrm{large}} + (1 - u) \log \sigma^2_{\mathrm{small}} \tag{3}

Each is read in each mode of the process; b^2 is 1 - alpha_bar if variance is preserved.

Eq. (1) is the best for data of no variance and eq. (2) for data of unit variance; what is best for
other data lies between (Ho et al. 2020, section 3.2). Eq. (3) is Nichol & Dhariwal 2021, eq. 15.

References:
    - Ho et al. 2020, https://arxiv.org/abs/2006.11239
    - Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddpm_jax.arrays import per_example, widened
from ddpm_jax.checks import check_choice, check_images, check_times, check_vector
from ddpm_jax.forward import q_posterior_variance
from ddpm_jax.predictions import Predicts, resolve
from ddpm_jax.processes.modal import Modal, check_modal

__all__ = [
    "Variance",
    "check_predicts",
    "fixed_variance",
    "interpolate",
    "learned_log_variance",
    "split_output",
    "variance_range",
]

Variance = Literal["small", "large", "learned_range"]
"""Where the variance of p(x_s | x_t) comes from: eq. (1), (2) or (3) of `ddpm_jax.reverse`."""


def check_predicts(process: Modal, predicts: Predicts) -> None:
    """Raises ValueError for a kind of prediction that the process cannot use.

    Args:
        process: a schedule, or another process of modes.
        predicts: what a network predicts.

    Raises:
        ValueError: an unknown kind, or one that does not determine the data without signal, such as
            eps, with a process that leaves none at T - 1.
        NoClosedForm: a chain without modes.
    """
    check_modal("process", process)
    prediction = resolve("predicts", predicts)
    if process.zero_terminal_snr and prediction.needs_signal:
        raise ValueError(
            f"predicts is {prediction.name!r}, and the schedule leaves no signal at t = T - 1: x_t"
            f" is the noise itself there, and {prediction.name} does not determine the data;"
            " predict 'v' or 'x0'"
        )


def split_output(output: Any, *, variance: Variance) -> tuple[Any, Any]:
    """A network's prediction, and its interpolation if it learned its variance.

    Args:
        output: what the network returned.
        variance: where the variance comes from; "learned_range" needs a pair.

    Returns:
        `(prediction, interpolation)`; the second is None unless `variance` is "learned_range".

    Raises:
        TypeError: "learned_range" and a network that returned no pair, or a pair for the others.
    """
    if isinstance(output, tuple) != (variance == "learned_range"):
        what = "array" if isinstance(output, jax.Array) else type(output).__name__
        raise TypeError(
            f"predict returned one {what} and variance is {variance!r}; a pair (prediction,"
            " interpolation) belongs to 'learned_range', and to that alone"
        )
    return output if isinstance(output, tuple) else (output, None)


def fixed_variance(
    process: Modal,
    t: Int[Array, " batch"],
    s: Int[Array, " batch"],
    *,
    variance: Literal["small", "large"],
) -> Float[Array, "batch *modes"]:
    r"""The "small" or the "large" variance of p(x_s | x_t), for any s < t.

    .. math::

        \sigma^2_{\mathrm{small}} = b_s^2 \big(1 - \mathrm{SNR}_t / \mathrm{SNR}_s\big), \qquad
        \sigma^2_{\mathrm{large}} = b_t^2 \big(1 - \mathrm{SNR}_t / \mathrm{SNR}_s\big)

    Eq. (1) and (2) of `ddpm_jax.reverse`; Ho et al. 2020, section 3.2. At `s = -1`, the data, the
    small one is 0 and the large one 1 - alpha_bar_t.

    Args:
        process: a schedule, or another process of modes.
        t: times in [0, T), int32 `[batch]`.
        s: earlier times, -1 <= s < t, int32 `[batch]`.
        variance: which of the two.

    Returns:
        The variance, float32 `[batch]`, or `[batch, *modes]` of a process of many modes; NaN where
        s is not earlier.

    Raises:
        TypeError, ValueError: a time of the wrong dtype or shape, or an unknown `variance`.
        NoClosedForm: a chain without modes.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import reverse, schedules
        >>> schedule, t = schedules.constant(10, beta=0.5), jnp.array([0, 5])
        >>> reverse.fixed_variance(schedule, t, t - 1, variance="large").tolist()  # beta
        [0.5, 0.5]

    References:
        Ho et al. 2020, https://arxiv.org/abs/2006.11239
    """
    check_modal("process", process)
    check_vector("t", t)
    check_times("s", s, t.shape[0])
    check_choice("variance", variance, ("small", "large"))
    if variance == "small":
        return q_posterior_variance(process, t, s)
    large = process.transition_variance(t, s)
    return jnp.where((s < t).reshape(t.shape + (1,) * (large.ndim - 1)), large, jnp.nan)


def learned_log_variance(
    process: Modal,
    interpolation: Float[Array, "batch *data"],
    t: Int[Array, " batch"],
    s: Int[Array, " batch"],
) -> Float[Array, "batch *data"]:
    r"""log of the learned variance of p(x_s | x_t), between small and large in the logarithm.

    .. math::

        u \log \sigma^2_{\mathrm{large}} + (1 - u) \log \sigma^2_{\mathrm{small}}

    Eq. (3) of `ddpm_jax.reverse`; Nichol & Dhariwal 2021, eq. 15. At `s = -1`, where the small one
    is 0, the small one of the step from t = 1 to s = 0 takes its place, or the large one if that
    step adds nothing. Where a step adds no noise, the result is -inf.

    Args:
        process: a schedule, or another process of modes.
        interpolation: u, a network's second output, one for each mode, `[batch, ...]`. 0 is the
            small variance, 1 the large one; it is not clipped. Networks that give it in [-1, 1], as
            some published ones do, are read as (output + 1) / 2.
        t: times in [0, T), int32 `[batch]`.
        s: earlier times, -1 <= s < t, int32 `[batch]`.

    Returns:
        The log variance, natural logarithm, shaped as `interpolation`, at least float32.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name.
        NoClosedForm: a chain without modes.

    References:
        Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672
    """
    check_images("interpolation", interpolation, t=t, s=s)
    return interpolate(interpolation, *variance_range(process, t, s))


def variance_range(
    process: Modal, t: Int[Array, " batch"], s: Int[Array, " batch"]
) -> tuple[Float[Array, "batch *modes"], Float[Array, "batch *modes"]]:
    """The small and the large variance between which one is learned.

    At `s = -1`, where the small one would be 0, it is that of the step from t = 1 to s = 0.

    Args:
        process: a schedule, or another process of modes.
        t: times in [0, T), int32 `[batch]`.
        s: earlier times, -1 <= s < t, int32 `[batch]`.

    Returns:
        The small and the large variance, float32 `[batch, *modes]` each.

    Raises:
        TypeError, ValueError: a time of the wrong dtype or shape.
        NoClosedForm: a chain without modes.
    """
    onto_data = s < 0
    small = fixed_variance(
        process, jnp.where(onto_data, 1, t), jnp.where(onto_data, 0, s), variance="small"
    )
    return small, fixed_variance(process, t, s, variance="large")


def interpolate(
    interpolation: Float[Array, "batch *data"],
    small: Float[Array, "batch *modes"],
    large: Float[Array, "batch *modes"],
) -> Float[Array, "batch *data"]:
    """The logarithm of a variance between small and large, by eq. (3) of `ddpm_jax.reverse`.

    Args:
        interpolation: u, `[batch, ...]`.
        small: the small variance, `[batch, *modes]`; where it is 0, the large one takes its place.
        large: the large variance, `[batch, *modes]`.

    Returns:
        u log large + (1 - u) log small, shaped as `interpolation`, at least float32; -inf where
        `large` is 0.
    """
    u = widened(interpolation)
    still = large == 0.0
    large = jnp.where(still, 1.0, large)
    small = jnp.where(small == 0.0, large, small)
    log_large, log_small = per_example(jnp.log(large), u), per_example(jnp.log(small), u)
    return jnp.where(per_example(still, u), -jnp.inf, u * log_large + (1.0 - u) * log_small)
