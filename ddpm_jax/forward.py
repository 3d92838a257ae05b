r"""q, the forward process: from data to noise, and what is known about the way back.

Everything follows from the chain q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I):

    (1)  x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps          the isotropic shortcut
    (2)  q(x_s | x_t, x_0) = N(a x_0 + b x_t, variance),  for any s < t
             r        = SNR_t / SNR_s
             a        = sqrt(alpha_bar_s) (1 - r)
             b        = sqrt(alpha_bar_t / alpha_bar_s) (1 - alpha_bar_s) / (1 - alpha_bar_t)
             variance = (1 - alpha_bar_s) (1 - r)
    (3)  q(x_t | x_s) = N(sqrt(r_a) x_s, 1 - r_a),  r_a = alpha_bar_t / alpha_bar_s
    (4)  v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0
    (5)  score = grad log q(x_t | x_0) = -eps / sqrt(1 - alpha_bar_t)

(1) and (2) at s = t - 1 are Ho et al. 2020, eq. 4 and 6 to 7 (https://arxiv.org/abs/2006.11239);
any s and (3) are Kingma et al. 2021, appendix A (https://arxiv.org/abs/2107.00630); (4) is
Salimans & Ho 2022 (https://arxiv.org/abs/2202.00512), (5) Song et al. 2021
(https://arxiv.org/abs/2011.13456). The shortcut (1) holds because each step is linear in x,
its noise is Gaussian, and one scalar beta_t serves every dimension. `q_chain` is the loop that it
replaces, and the reference to test it against.

Images are `[batch, ...]`, any float dtype, which the result keeps; times are int32 `[batch]` in
[0, T). A time outside that range gives NaN. Noise is an argument, so every function is pure.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ddpm_jax.checks import (
    check_float,
    check_key,
    check_quantity,
    check_same_shape,
    check_times,
    check_vector,
)
from ddpm_jax.schedules import Schedule

__all__ = [
    "Predicts",
    "Quantity",
    "convert",
    "data_axes",
    "per_example",
    "q_chain",
    "q_posterior",
    "q_posterior_variance",
    "q_sample",
    "q_step",
    "q_transition",
    "widened",
]

Predicts = Literal["eps", "x0", "v"]
"""What a network's output stands for: the noise, the data, or Salimans & Ho's v."""

Quantity = Literal["eps", "x0", "v", "score"]
"""What `convert` knows: these three, and the gradient of log q(x_t)."""


def q_sample(
    schedule: Schedule,
    x0: Float[Array, "batch *data"],
    t: Int[Array, " batch"],
    eps: Float[Array, "batch *data"],
) -> Float[Array, "batch *data"]:
    """x_t given x_0 in one expression, eq. (1): T steps of the chain for the price of one.

    Args:
        schedule: the tables.
        x0: data.
        t: times in [0, T); at `t = 0` one step of noise has been added.
        eps: standard normal noise shaped as `x0`.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ddpm_jax import schedules, q_sample
        >>> x0, eps = jnp.ones((2, 8, 8, 1)), jnp.zeros((2, 8, 8, 1))
        >>> q_sample(schedules.linear(1000), x0, jnp.array([0, 999]), eps).shape
        (2, 8, 8, 1)
    """
    check_float("x0", x0)
    check_times("t", t, x0.shape[0])
    check_same_shape("eps", eps, "x0", x0)
    return per_example(schedule.signal(t), x0) * x0 + per_example(schedule.noise(t), x0) * eps


def q_step(
    schedule: Schedule,
    x_prev: Float[Array, "batch *data"],
    t: Int[Array, " batch"],
    eps: Float[Array, "batch *data"],
) -> Float[Array, "batch *data"]:
    """One step of the chain, x_{t-1} to x_t: sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) eps.

    `t` in [0, T); the step to `t = 0` starts from the data.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name.
    """
    check_float("x_prev", x_prev)
    check_times("t", t, x_prev.shape[0])
    check_same_shape("eps", eps, "x_prev", x_prev)
    # sqrt(1 - beta) by the logarithm: 1 - beta cancels at the noisy end.
    keep = jnp.exp(0.5 * schedule.log_alpha_bar_difference(t, t - 1))
    add = jnp.sqrt(schedule.beta(t))
    return per_example(keep, x_prev) * x_prev + per_example(add, x_prev) * eps


def q_transition(
    schedule: Schedule,
    x_s: Float[Array, "batch *data"],
    t: Int[Array, " batch"],
    s: Int[Array, " batch"],
    eps: Float[Array, "batch *data"],
) -> Float[Array, "batch *data"]:
    """x_t given x_s in one expression, eq. (3): `q_step` over any number of steps.

    -1 <= s < t < T; from `s = -1`, the data, it is `q_sample`.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name.
    """
    check_float("x_s", x_s)
    check_times("t", t, x_s.shape[0])
    check_times("s", s, x_s.shape[0])
    check_same_shape("eps", eps, "x_s", x_s)
    log_ratio = schedule.log_alpha_bar_difference(t, s)
    keep, add = jnp.exp(0.5 * log_ratio), jnp.sqrt(-jnp.expm1(log_ratio))
    return per_example(keep, x_s) * x_s + per_example(add, x_s) * eps


def q_chain(
    schedule: Schedule,
    key: Key[Array, ""],
    x0: Float[Array, "batch *data"],
    num_steps: int,
) -> Float[Array, "batch *data"]:
    """x after `num_steps` steps of the chain, noise drawn at each: the loop, as one scan.

    Distributed as `q_sample` at `t = num_steps - 1`, and as many times dearer as there are steps.
    Narrower images are walked in float32: in bfloat16 sqrt(1 - beta) is 1 for beta below 0.004.

    Raises:
        TypeError, ValueError: `x0` not floating point, `key` not a typed key, or `num_steps`
            outside [0, T].
    """
    check_float("x0", x0)
    check_key("key", key)
    if not 0 <= num_steps <= schedule.num_steps:
        raise ValueError(
            f"num_steps is {num_steps}; the chain has 0 to T = {schedule.num_steps} steps"
        )

    def step(x: jax.Array, t: jax.Array) -> tuple[jax.Array, None]:
        eps = jax.random.normal(jax.random.fold_in(key, t), x.shape, x.dtype)
        return q_step(schedule, x, jnp.broadcast_to(t, x.shape[:1]), eps), None

    x, _ = jax.lax.scan(step, widened(x0), jnp.arange(num_steps, dtype=jnp.int32))
    return x.astype(x0.dtype)


def q_posterior(
    schedule: Schedule,
    x0: Float[Array, "batch *data"],
    x_t: Float[Array, "batch *data"],
    t: Int[Array, " batch"],
    s: Int[Array, " batch"],
) -> tuple[Float[Array, "batch *data"], Float[Array, " batch"]]:
    """Mean `[batch, ...]` and variance `[batch]` of q(x_s | x_t, x_0), eq. (2), for any s < t.

    NaN where s is not the earlier of the two.

    `s = -1` stands for the data: the mean is then `x0` and the variance 0. The two weights of the
    mean and the variance come from differences of log SNR, so neighbouring times keep all digits.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name.
    """
    check_float("x0", x0)
    check_same_shape("x_t", x_t, "x0", x0)
    check_times("t", t, x0.shape[0])
    check_times("s", s, x0.shape[0])
    one_minus_ratio = _one_minus_snr_ratio(schedule, t, s)
    variance_s, variance_t = schedule.noise_variance(s), schedule.noise_variance(t)
    weight_x0 = schedule.signal(s) * one_minus_ratio
    signal_ratio = jnp.exp(0.5 * schedule.log_alpha_bar_difference(t, s))
    weight_x_t = signal_ratio * variance_s / variance_t
    mean = per_example(weight_x0, x0) * x0 + per_example(weight_x_t, x0) * x_t
    return mean, variance_s * one_minus_ratio


def q_posterior_variance(
    schedule: Schedule, t: Int[Array, " batch"], s: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    """The variance of q(x_s | x_t, x_0) alone, eq. (2); 0 at `s = -1`.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name.
    """
    check_vector("t", t)
    check_times("s", s, t.shape[0])
    return schedule.noise_variance(s) * _one_minus_snr_ratio(schedule, t, s)


def convert(
    schedule: Schedule,
    value: Float[Array, "batch *data"],
    x_t: Float[Array, "batch *data"],
    t: Int[Array, " batch"],
    *,
    source: Quantity,
    target: Quantity,
) -> Float[Array, "batch *data"]:
    """The `target` (eps, x0, v or score) that `value`, read as the `source`, means at `x_t`.

    Eq. (1), (4) and (5) solved for each of the four; a = sqrt(alpha_bar), b = sqrt(1 - alpha_bar).
    Nothing is clamped. Where alpha_bar is 0, eps and score say nothing about the data: x0 and v
    made of them are not finite there.

    Args:
        schedule: the tables.
        value: what is converted.
        x_t: the noised data at which it holds.
        t: times in [0, T).
        source: what `value` is.
        target: what is wanted.

    Returns:
        Shaped as `x_t`, in its dtype.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, or an unknown name.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import schedules, convert
        >>> x_t, eps_hat, t = jnp.ones((1, 2)), jnp.zeros((1, 2)), jnp.array([0])
        >>> x0_hat = convert(schedules.linear(10), eps_hat, x_t, t, source="eps", target="x0")
    """
    check_float("value", value)
    check_same_shape("x_t", x_t, "value", value)
    check_times("t", t, value.shape[0])
    check_quantity("source", source)
    check_quantity("target", target)
    value = value.astype(x_t.dtype)
    if source == target:
        return value
    a = per_example(schedule.signal(t), x_t)
    b = per_example(schedule.noise(t), x_t)
    if source == "score":
        source, value = "eps", -b * value
    match (source, target):
        case ("eps", "eps"):
            return value
        case ("eps", "x0"):
            return (x_t - b * value) / a
        case ("eps", "v"):
            return (value - b * x_t) / a
        case ("eps", "score"):
            return -value / b
        case ("x0", "eps"):
            return (x_t - a * value) / b
        case ("x0", "v"):
            return (a * x_t - value) / b
        case ("x0", "score"):
            return (a * value - x_t) / per_example(schedule.noise_variance(t), x_t)
        case ("v", "eps"):
            return b * x_t + a * value
        case ("v", "x0"):
            return a * x_t - b * value
        case _:  # v to score
            return -x_t - (a / b) * value


def _one_minus_snr_ratio(
    schedule: Schedule, t: Int[Array, " batch"], s: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    """1 - SNR_t / SNR_s, and 1 at s = -1; NaN where s is not the earlier time."""
    return jnp.where(s < t, -jnp.expm1(schedule.log_snr_difference(t, s)), jnp.nan)


def per_example(values: Float[Array, " batch"], like: jax.Array) -> jax.Array:
    """`values` as a column that broadcasts over the data axes of `like`, in its dtype."""
    # NumPy's float64 is float32 to JAX, unless told otherwise.
    dtype = jax.dtypes.canonicalize_dtype(like.dtype)
    return values.astype(dtype).reshape(values.shape + (1,) * (like.ndim - 1))


def data_axes(x: jax.Array) -> tuple[int, ...]:
    """All axes but the batch's."""
    return tuple(range(1, x.ndim))


def widened(x: jax.Array) -> jax.Array:
    """`x` in float32 if it was narrower: sums and squares of errors are no work for bfloat16."""
    # promote_types would say the same, but not where JAX's dtype promotion is strict.
    x = jnp.asarray(x)  # of NumPy float64, what JAX takes it for
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x
