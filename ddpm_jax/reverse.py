r"""p, the reverse process: its variance, fixed or learned. Its mean is `forward.q_posterior`'s.

p(x_s | x_t) is a Gaussian. Its mean is that of `forward.q_posterior` with the network's x0_hat in
the place of x_0. For its variance there are three choices:

    small          b_s^2 (1 - SNR_t / SNR_s), the posterior's own
    large          b_t^2 (1 - SNR_t / SNR_s), that of the step itself, its beta
    learned_range  exp(u log large + (1 - u) log small), u the network's second output

in each mode of the process, with a^2 = alpha_bar and b^2 = 1 - alpha_bar for a schedule.

The first two are right for data of no variance and of unit variance and bound what is right for
others (Ho et al. 2020, section 3.2, https://arxiv.org/abs/2006.11239); the third is Nichol &
Dhariwal 2021, eq. 15 (https://arxiv.org/abs/2102.09672).
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddpm_jax.arrays import per_example, widened
from ddpm_jax.checks import check_choice, check_images, check_kind, check_times, check_vector
from ddpm_jax.forward import q_posterior_variance
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
"""Where the variance of p(x_s | x_t) comes from."""


def check_predicts(process: Modal, predicts: str) -> None:
    """Refuses a kind of prediction that the process cannot use.

    Raises:
        ValueError: an unknown kind, or eps with a process that leaves no signal at T - 1.
        NoClosedForm: a chain without modes.
    """
    check_modal("process", process)
    check_kind("predicts", predicts)
    if predicts == "eps" and process.zero_terminal_snr:
        raise ValueError(
            "predicts is 'eps', and the schedule leaves no signal at t = T - 1: x_t is the noise"
            " itself there, and eps does not determine the data; predict 'v' or 'x0'"
        )


def split_output(output: Any, *, variance: Variance) -> tuple[Any, Any]:
    """A network's prediction, and its interpolation if `variance` is "learned_range", else None.

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
    """The "small" or the "large" variance of p(x_s | x_t), `[batch]`, for any s < t; else NaN.

    At `s = -1`, the data, the small one is 0 and the large one 1 - alpha_bar_t. Of a process of
    many modes it is that of each, `[batch, *modes]`.

    Raises:
        TypeError, ValueError: a time of the wrong dtype or shape, or an unknown `variance`.
        NoClosedForm: a chain without modes.
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
    """log of the learned variance of p(x_s | x_t), between small and large in the logarithm.

    Nichol & Dhariwal 2021, eq. 15. At `s = -1`, where the small one is 0, the small one of the
    step from t = 1 to s = 0 takes its place, or the large one if that step adds nothing. A step
    that adds nothing has no variance, whatever is learned: -inf.

    Args:
        process: a schedule, or another process of modes.
        interpolation: u in the equation, a network's second output, one for each mode: 0 is the
            small variance, 1 the large one, and nothing keeps it between. Networks that give it in
            [-1, 1], as some published ones do, are read as (output + 1) / 2.
        t: times in [0, T).
        s: earlier times.

    Returns:
        Shaped as `interpolation`, at least float32.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name.
    """
    check_images("interpolation", interpolation, t=t, s=s)
    return interpolate(interpolation, *variance_range(process, t, s))


def variance_range(
    process: Modal, t: Int[Array, " batch"], s: Int[Array, " batch"]
) -> tuple[Float[Array, "batch *modes"], Float[Array, "batch *modes"]]:
    """The small and the large variance between which one is learned."""
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
    """u log large + (1 - u) log small, large where small is 0; -inf where both are."""
    u = widened(interpolation)
    still = large == 0.0
    large = jnp.where(still, 1.0, large)
    small = jnp.where(small == 0.0, large, small)
    log_large, log_small = per_example(jnp.log(large), u), per_example(jnp.log(small), u)
    return jnp.where(per_example(still, u), -jnp.inf, u * log_large + (1.0 - u) * log_small)
