r"""q, the forward process: from data to noise, and what is known about the way back.

A process gives how much signal a_t is left at t and how much noise b_t was added. From DDPM's
chain, q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I), they are a_t^2 = alpha_bar_t and
b_t^2 = 1 - alpha_bar_t, one pair for all dimensions. Everything else follows, SNR = a^2 / b^2:

    (1)  x_t = a_t x_0 + b_t eps                                          the isotropic shortcut
    (2)  q(x_s | x_t, x_0) = N(weight_x0 x_0 + weight_x_t x_t, variance),  for any s < t
             r          = SNR_t / SNR_s
             weight_x0  = a_s (1 - r)
             weight_x_t = (a_t / a_s) b_s^2 / b_t^2
             variance   = b_s^2 (1 - r)
    (3)  q(x_t | x_s) = N((a_t / a_s) x_s, b_t^2 (1 - r))
    (4)  v = a_t eps - b_t x_0
    (5)  score = grad log q(x_t | x_0) = -eps / b_t

(1) and (2) at s = t - 1 are Ho et al. 2020, eq. 4 and 6 to 7 (https://arxiv.org/abs/2006.11239);
any s and (3) are Kingma et al. 2021, appendix A (https://arxiv.org/abs/2107.00630); (4) is
Salimans & Ho 2022 (https://arxiv.org/abs/2202.00512), (5) Song et al. 2021
(https://arxiv.org/abs/2011.13456).

The shortcut holds because each step is linear in x and its noise is Gaussian. Isotropy is not
required: a linear Gaussian chain that is diagonal in some orthonormal basis is a scalar chain in
each of its modes, and a, b and all of the above are then read per mode (`ddpm_jax.processes`);
`processes.modal.mix` applies them to data. A chain without modes has methods of the same names for
its closed forms; `q_chain` is the loop, which needs none.

Images are `[batch, ...]`, any float dtype, which the result keeps; times are int32 `[batch]` in
[0, T). A time outside that range gives NaN. Noise is an argument, so every function is pure.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ddpm_jax.arrays import per_example, widened
from ddpm_jax.checks import (
    check_count,
    check_float,
    check_images,
    check_key,
    check_quantity,
    check_same_shape,
    check_times,
    check_vector,
)
from ddpm_jax.compiled import call_compiled
from ddpm_jax.processes.modal import (
    Modal,
    Process,
    check_modal,
    check_process,
    mix,
    one_minus_snr_ratio,
    posterior_weights,
    step_weights,
    transition_weights,
)

__all__ = [
    "Predicts",
    "Quantity",
    "convert",
    "q_chain",
    "q_posterior",
    "q_posterior_variance",
    "q_sample",
    "q_step",
    "q_transition",
]

Predicts = Literal["eps", "x0", "v"]
"""What a network predicts: the noise, the data, or Salimans & Ho's v."""

Quantity = Literal["eps", "x0", "v", "score"]
"""What `convert` takes: these three, and the gradient of log q(x_t)."""


def q_sample(
    process: Process,
    x0: Float[Array, "batch *data"],
    t: Int[Array, " batch"],
    eps: Float[Array, "batch *data"],
) -> Float[Array, "batch *data"]:
    """x_t given x_0 in one expression, eq. (1), which costs as much as one step.

    Args:
        process: a schedule, or another process.
        x0: data.
        t: times in [0, T); at `t = 0` one step of noise has been added.
        eps: standard normal noise shaped as `x0`; a chain of other noise draws it,
            `process.draw_noise`.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name.
        NoClosedForm: a chain without closed forms.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ddpm_jax import schedules, q_sample
        >>> x0, eps = jnp.ones((2, 8, 8, 1)), jnp.zeros((2, 8, 8, 1))
        >>> q_sample(schedules.linear(1000), x0, jnp.array([0, 999]), eps).shape
        (2, 8, 8, 1)
    """
    check_images("x0", x0, t=t)
    check_same_shape("eps", eps, "x0", x0)
    check_process("process", process)
    if hasattr(process, "q_sample"):
        return process.q_sample(x0, t, eps)
    return mix(process, (process.signal(t), x0), (process.noise(t), eps))


def q_step(
    process: Process,
    x_prev: Float[Array, "batch *data"],
    t: Int[Array, " batch"],
    eps: Float[Array, "batch *data"],
) -> Float[Array, "batch *data"]:
    """One step of the chain, x_{t-1} to x_t: eq. (3) at s = t - 1.

    For a schedule sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) eps. `t` in [0, T); the step to `t = 0`
    starts from the data.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name.
    """
    check_images("x_prev", x_prev, t=t)
    check_same_shape("eps", eps, "x_prev", x_prev)
    check_process("process", process)
    if hasattr(process, "q_step"):
        return process.q_step(x_prev, t, eps)
    keep, add = step_weights(process, t)
    return mix(process, (keep, x_prev), (add, eps))


def q_transition(
    process: Process,
    x_s: Float[Array, "batch *data"],
    t: Int[Array, " batch"],
    s: Int[Array, " batch"],
    eps: Float[Array, "batch *data"],
) -> Float[Array, "batch *data"]:
    """x_t given x_s in one expression, eq. (3): `q_step` over any number of steps.

    -1 <= s < t < T; from `s = -1`, the data, it is `q_sample`.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name.
        NoClosedForm: a chain without closed forms.
    """
    check_images("x_s", x_s, t=t, s=s)
    check_same_shape("eps", eps, "x_s", x_s)
    check_process("process", process)
    if hasattr(process, "q_transition"):
        return process.q_transition(x_s, t, s, eps)
    keep, add = transition_weights(process, t, s)
    return mix(process, (keep, x_s), (add, eps))


def q_chain(
    process: Process,
    key: Key[Array, ""],
    x0: Float[Array, "batch *data"],
    num_steps: int,
) -> Float[Array, "batch *data"]:
    """x after `num_steps` steps of the chain, noise drawn at each: the loop, as one scan.

    Distributed as `q_sample` at `t = num_steps - 1`; costs `num_steps` times as much.
    Narrower images are walked in float32: in bfloat16 sqrt(1 - beta) is 1 for beta below 0.004.

    Raises:
        TypeError, ValueError: `x0` not floating point, `key` not a typed key, or `num_steps`
            outside [0, T].
    """
    check_float("x0", x0)
    check_key("key", key)
    check_process("process", process)
    check_count("num_steps", num_steps)
    if not 0 <= num_steps <= process.num_steps:
        raise ValueError(
            f"num_steps is {num_steps}; the chain has 0 to T = {process.num_steps} steps"
        )

    def run(key: jax.Array, x0: jax.Array) -> jax.Array:
        def step(x: jax.Array, t: jax.Array) -> tuple[jax.Array, None]:
            step_key, t = jax.random.fold_in(key, t), jnp.broadcast_to(t, x.shape[:1])
            if hasattr(process, "draw_step_noise"):
                eps = process.draw_step_noise(step_key, x.shape, t).astype(x.dtype)
            else:
                eps = jax.random.normal(step_key, x.shape, x.dtype)
            return q_step(process, x, t, eps), None

        x, _ = jax.lax.scan(step, widened(x0), jnp.arange(num_steps, dtype=jnp.int32))
        return x.astype(x0.dtype)

    return call_compiled(run, key, x0)


def q_posterior(
    process: Process,
    x0: Float[Array, "batch *data"],
    x_t: Float[Array, "batch *data"],
    t: Int[Array, " batch"],
    s: Int[Array, " batch"],
) -> tuple[Float[Array, "batch *data"], Array]:
    """Mean and variance of q(x_s | x_t, x_0), eq. (2), for any s < t; NaN where s is not earlier.

    The two weights of the mean and the variance come from differences of log SNR, so neighbouring
    times keep all digits. `s = -1` stands for the data: the mean is then `x0` and the variance 0.

    Returns:
        The mean, shaped as `x0`, and the variance of each mode, `[batch, *modes]`; a schedule has
        one mode without axes, `[batch]`. A chain without modes returns the second moment that its
        own `q_posterior` documents: an `AffineChain` a covariance, a `GammaChain` the variance of
        each value.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name.
        NoClosedForm: a chain without closed forms.
    """
    check_images("x0", x0, t=t, s=s)
    check_same_shape("x_t", x_t, "x0", x0)
    check_process("process", process)
    if hasattr(process, "q_posterior"):
        return process.q_posterior(x0, x_t, t, s)
    weight_x0, weight_x_t = posterior_weights(process, t, s)
    mean = mix(process, (weight_x0, x0), (weight_x_t, x_t))
    return mean, process.noise_variance(s) * one_minus_snr_ratio(process, t, s)


def q_posterior_variance(
    process: Modal, t: Int[Array, " batch"], s: Int[Array, " batch"]
) -> Float[Array, "batch *modes"]:
    """The variance of q(x_s | x_t, x_0) alone, eq. (2), of each mode; 0 at `s = -1`.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name.
        NoClosedForm: a chain without modes.
    """
    check_modal("process", process)
    check_vector("t", t)
    check_times("s", s, t.shape[0])
    return process.noise_variance(s) * one_minus_snr_ratio(process, t, s)


def convert(
    process: Modal,
    value: Float[Array, "batch *data"],
    x_t: Float[Array, "batch *data"],
    t: Int[Array, " batch"],
    *,
    source: Quantity,
    target: Quantity,
) -> Float[Array, "batch *data"]:
    """The `target` (eps, x0, v or score) that follows from `value`, a `source`, and `x_t`.

    Eq. (1), (4) and (5) solved for each of the four. Nothing is clamped. Where a is 0, eps and
    score carry no information about the data: x0 and v made of them are not finite there.

    Args:
        process: a schedule, or another process of modes.
        value: of the kind `source`.
        x_t: the noised data.
        t: times in [0, T).
        source: the kind of `value`.
        target: the kind of the result.

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
    check_images("value", value, t=t)
    check_same_shape("x_t", x_t, "value", value)
    check_quantity("source", source)
    check_quantity("target", target)
    check_modal("process", process)
    value = value.astype(x_t.dtype)
    if source == target:
        return value
    dtype, modes = x_t.dtype, process.basis.to_modes(x_t)
    converted = _convert(process, process.basis.to_modes(value), modes, t, source, target)
    return process.basis.to_data(converted).astype(dtype)


def _convert(
    process: Modal,
    value: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
    source: Quantity,
    target: Quantity,
) -> jax.Array:
    """`convert` by modes."""
    a = per_example(process.signal(t), x_t)
    b = per_example(process.noise(t), x_t)
    if source == "score":
        source, value = "eps", -b * value
    power = per_example(process.power(t), x_t)  # a^2 + b^2
    match (source, target):
        case ("eps", "eps"):
            return value
        case ("eps", "x0"):
            return (x_t - b * value) / a
        case ("eps", "v"):
            return (power * value - b * x_t) / a
        case ("eps", "score"):
            return -value / b
        case ("x0", "eps"):
            return (x_t - a * value) / b
        case ("x0", "v"):
            return (a * x_t - power * value) / b
        case ("x0", "score"):
            return (a * value - x_t) / per_example(process.noise_variance(t), x_t)
        case ("v", "eps"):
            return (b * x_t + a * value) / power
        case ("v", "x0"):
            return (a * x_t - b * value) / power
        case _:  # v to score
            return (-x_t - (a / b) * value) / power
