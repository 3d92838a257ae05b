"""What x_t, and the x_s before it, are made of: the weights of each mode, and how they are applied.

The equations are those of `ddpm_jax.forward`, which are all that a modal process needs. A chain of
other noise with the first two moments of a schedule weighs as the schedule does.
"""

import functools
import operator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddpm_jax.arrays import per_example
from ddpm_jax.processes.contract import Modal

__all__ = ["mix", "one_minus_snr_ratio", "posterior_weights", "step_weights", "transition_weights"]

Weights = Float[Array, "batch *modes"]


def mix(
    process: Modal, *terms: tuple[Float[Array, "batch *modes"], Float[Array, "batch *data"]]
) -> Float[Array, "batch *data"]:
    """sum_i w_i x_i for pairs (w_i, x_i): weights of each mode, arrays of the data.

    B^T (sum_i w_i * B x_i), in the dtype of the first array.
    """
    dtype = jax.dtypes.canonicalize_dtype(terms[0][1].dtype)
    by_mode = [(weights, process.basis.to_modes(x)) for weights, x in terms]
    weighted = [per_example(weights, modes) * modes for weights, modes in by_mode]
    return process.basis.to_data(functools.reduce(operator.add, weighted)).astype(dtype)


def step_weights(process: Modal, t: Int[Array, " batch"]) -> tuple[Weights, Weights]:
    """Of x_{t-1} and of the noise, in x_t."""
    # sqrt(1 - beta) by the logarithm: 1 - beta cancels at the noisy end.
    keep = jnp.exp(0.5 * process.log_alpha_bar_difference(t, t - 1))
    return keep, jnp.sqrt(process.beta(t))


def transition_weights(
    process: Modal, t: Int[Array, " batch"], s: Int[Array, " batch"]
) -> tuple[Weights, Weights]:
    """Of x_s and of the noise, in x_t: eq. (3)."""
    keep = jnp.exp(0.5 * process.log_alpha_bar_difference(t, s))
    return keep, jnp.sqrt(process.transition_variance(t, s))


def posterior_weights(
    process: Modal, t: Int[Array, " batch"], s: Int[Array, " batch"]
) -> tuple[Weights, Weights]:
    """Of x_0 and of x_t, in the mean of x_s: eq. (2)."""
    weight_x0 = process.signal(s) * one_minus_snr_ratio(process, t, s)
    signal_ratio = jnp.exp(0.5 * process.log_alpha_bar_difference(t, s))
    return weight_x0, signal_ratio * process.noise_variance(s) / process.noise_variance(t)


def one_minus_snr_ratio(
    process: Modal, t: Int[Array, " batch"], s: Int[Array, " batch"]
) -> Float[Array, "batch *modes"]:
    """1 - SNR_t / SNR_s, and 1 at s = -1; NaN where s is not the earlier time."""
    one_minus_ratio = -jnp.expm1(process.log_snr_difference(t, s))
    return jnp.where(per_example(s < t, one_minus_ratio), one_minus_ratio, jnp.nan)
