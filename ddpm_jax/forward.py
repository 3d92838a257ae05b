r"""The forward process q: from data to noise, its posteriors, and conversions of predictions.

A process gives the factor a_t on the data and the factor b_t on the noise at each time t. The chain
of DDPM has one pair for all dimensions, from its steps' variances beta_t:

.. math::

    q(x_t \mid x_{t-1}) = \mathcal{N}\big(\sqrt{1 - \beta_t}\, x_{t-1},\ \beta_t I\big)

Its a_t^2 is alpha_bar_t, and its b_t^2 is 1 - alpha_bar_t. With the signal-to-noise ratio

.. math::

    \mathrm{SNR}_t = a_t^2 / b_t^2, \qquad r = \mathrm{SNR}_t / \mathrm{SNR}_s

everything else follows. x_t given x_0 is one expression, the isotropic shortcut:

.. math::

    x_t = a_t x_0 + b_t \epsilon \tag{1}

The posterior, for any s < t:

.. math::

    q(x_s \mid x_t, x_0) = \mathcal{N}\Big(a_s (1 - r)\, x_0
    + \frac{a_t}{a_s} \frac{b_s^2}{b_t^2}\, x_t,\ b_s^2 (1 - r)\Big) \tag{2}

The steps s + 1 to t in one:

.. math::

    q(x_t \mid x_s) = \mathcal{N}\Big(\frac{a_t}{a_s} x_s,\ b_t^2 (1 - r)\Big) \tag{3}

Eq. (1), and eq. (2) at s = t - 1, are Ho et al. 2020, eq. 4, 6 and 7; any s and eq. (3) are Kingma
et al. 2021, appendix A. What a network predicts at x_t, and how one prediction follows from
another, is in `ddpm_jax.predictions`.

The shortcut holds because each step is linear in x and its noise is Gaussian. Isotropy is not
required: a linear Gaussian chain that is diagonal in some orthonormal basis is a scalar chain in
each of its modes, and a, b and all of the above are then read per mode (`ddpm_jax.processes`);
`processes.modal.mix` applies them to data. A chain without modes has methods of the same names for
its closed forms; `q_chain` runs the steps one by one and needs none.

Images are `[batch, ...]`, any float dtype, which the result keeps; times are int32 `[batch]` in
[0, T). A time outside that range gives NaN. Noise is an argument, so every function is pure.

References:
    - Ho et al. 2020, https://arxiv.org/abs/2006.11239
    - Kingma et al. 2021, https://arxiv.org/abs/2107.00630
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ddpm_jax.arrays import per_example, widened
from ddpm_jax.checks import (
    check_count,
    check_float,
    check_images,
    check_key,
    check_same_shape,
    check_times,
    check_vector,
)
from ddpm_jax.compiled import call_compiled
from ddpm_jax.predictions import Predicts, conversion, resolve, weights_at
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
    "convert",
    "q_chain",
    "q_posterior",
    "q_posterior_variance",
    "q_sample",
    "q_step",
    "q_transition",
]


def q_sample(
    process: Process,
    x0: Float[Array, "batch *data"],
    t: Int[Array, " batch"],
    eps: Float[Array, "batch *data"],
) -> Float[Array, "batch *data"]:
    r"""Computes x_t from x_0 in one expression, at the cost of one step.

    .. math::

        x_t = a_t x_0 + b_t \epsilon

    Eq. (1) of `ddpm_jax.forward`; Ho et al. 2020, eq. 4. For a schedule a = sqrt(alpha_bar) and
    b = sqrt(1 - alpha_bar).

    Args:
        process: a schedule, or another process.
        x0: data, `[batch, ...]`.
        t: times in [0, T), int32 `[batch]`; at `t = 0` one step of noise has been added.
        eps: standard normal noise shaped as `x0`; a chain of other noise draws it,
            `process.draw_noise`.

    Returns:
        x_t, shaped as `x0`, in its dtype. NaN where t is outside [0, T).

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name.
        NoClosedForm: a chain without closed forms.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ddpm_jax import schedules, q_sample
        >>> x0, eps = jnp.ones((2, 8, 8, 1)), jnp.zeros((2, 8, 8, 1))
        >>> q_sample(schedules.linear(1000), x0, jnp.array([0, 999]), eps).shape
        (2, 8, 8, 1)

    References:
        Ho et al. 2020, https://arxiv.org/abs/2006.11239
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
    r"""One step of the chain, from x_{t-1} to x_t.

    .. math::

        x_t = \frac{a_t}{a_{t-1}} x_{t-1}
        + b_t \sqrt{1 - \mathrm{SNR}_t / \mathrm{SNR}_{t-1}}\, \epsilon

    Eq. (3) of `ddpm_jax.forward` at s = t - 1. For a schedule it is sqrt(1 - beta_t) x_{t-1} +
    sqrt(beta_t) eps (Ho et al. 2020, eq. 2).

    Args:
        process: a schedule, or another process.
        x_prev: x_{t-1}, `[batch, ...]`.
        t: times in [0, T), int32 `[batch]`; the step to `t = 0` starts from the data.
        eps: standard normal noise shaped as `x_prev`; a chain of other noise draws it,
            `process.draw_step_noise`.

    Returns:
        x_t, shaped as `x_prev`, in its dtype. NaN where t is outside [0, T).

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import q_step, schedules
        >>> x, eps, t = jnp.ones((2, 8, 8, 1)), jnp.zeros((2, 8, 8, 1)), jnp.array([0, 999])
        >>> [round(v, 4) for v in q_step(schedules.linear(1000), x, t, eps)[:, 0, 0, 0].tolist()]
        [0.9999, 0.9899]

    References:
        Ho et al. 2020, https://arxiv.org/abs/2006.11239
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
    r"""Computes x_t from x_s in one expression: any number of steps at the cost of one.

    .. math::

        x_t = \frac{a_t}{a_s} x_s + b_t \sqrt{1 - \mathrm{SNR}_t / \mathrm{SNR}_s}\, \epsilon

    Eq. (3) of `ddpm_jax.forward`; Kingma et al. 2021, appendix A. From `s = -1`, the data, it is
    `q_sample`.

    Args:
        process: a schedule, or another process.
        x_s: images at time s, `[batch, ...]`.
        t: times in [0, T), int32 `[batch]`.
        s: earlier times, -1 <= s < t, int32 `[batch]`; -1 stands for the data.
        eps: standard normal noise shaped as `x_s`.

    Returns:
        x_t, shaped as `x_s`, in its dtype. NaN where a time is outside its range.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name.
        NoClosedForm: a chain without closed forms.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import q_transition, schedules
        >>> x, eps, t = jnp.ones((2, 8, 8, 1)), jnp.zeros((2, 8, 8, 1)), jnp.array([10, 999])
        >>> q_transition(schedules.linear(1000), x, t, t - 10, eps).shape
        (2, 8, 8, 1)

    References:
        Kingma et al. 2021, https://arxiv.org/abs/2107.00630
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
    """Runs `num_steps` steps of the chain, with fresh noise at each, as one compiled scan.

    Distributed as `q_sample` at `t = num_steps - 1`; costs `num_steps` times as much. Narrower
    images are walked in float32: in bfloat16 sqrt(1 - beta) is 1 for beta below 0.004.

    Args:
        process: a schedule, or another process; it needs no closed forms.
        key: typed random key; step t uses fold_in(key, t).
        x0: data, `[batch, ...]`.
        num_steps: how many steps, from 0 to T.

    Returns:
        x at `t = num_steps - 1`, shaped as `x0`, in its dtype; `x0` itself after 0 steps.

    Raises:
        TypeError, ValueError: `x0` not floating point, `key` not a typed key, or `num_steps`
            outside [0, T].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ddpm_jax import q_chain, schedules
        >>> x0 = jnp.ones((2, 8, 8, 1))
        >>> q_chain(schedules.linear(1000), jax.random.key(0), x0, num_steps=10).shape
        (2, 8, 8, 1)
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
    r"""Mean and variance of q(x_s | x_t, x_0), for any s < t.

    .. math::

        \mathrm{mean} = a_s (1 - r)\, x_0 + \frac{a_t}{a_s} \frac{b_s^2}{b_t^2}\, x_t, \qquad
        \mathrm{variance} = b_s^2 (1 - r), \qquad r = \mathrm{SNR}_t / \mathrm{SNR}_s

    Eq. (2) of `ddpm_jax.forward`; Ho et al. 2020, eq. 6 and 7, for s = t - 1. The two weights of
    the mean and the variance come from differences of log SNR, so neighbouring times keep all
    digits.

    Args:
        process: a schedule, or another process.
        x0: data, or a network's x0_hat, `[batch, ...]`.
        x_t: noised data, shaped as `x0`.
        t: times in [0, T), int32 `[batch]`.
        s: earlier times, -1 <= s < t, int32 `[batch]`; at `s = -1`, the data, the mean is `x0` and
            the variance 0.

    Returns:
        The mean, shaped as `x0` and in its dtype, and the variance of each mode, `[batch, *modes]`
        float32; a schedule has one mode without axes, `[batch]`. NaN where s is not earlier. A
        chain without modes returns the second moment that its own `q_posterior` documents, an
        `AffineChain` a covariance, a `GammaChain` the variance of each value.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name.
        NoClosedForm: a chain without closed forms.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import q_posterior, schedules
        >>> x0, x_t, t = jnp.ones((2, 8, 8, 1)), jnp.zeros((2, 8, 8, 1)), jnp.array([0, 999])
        >>> mean, variance = q_posterior(schedules.linear(1000), x0, x_t, t, t - 1)
        >>> mean.shape, variance.shape, float(variance[0])
        ((2, 8, 8, 1), (2,), 0.0)

    References:
        Ho et al. 2020, https://arxiv.org/abs/2006.11239
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
    r"""The variance of q(x_s | x_t, x_0) alone, of each mode.

    .. math::

        b_s^2 \big(1 - \mathrm{SNR}_t / \mathrm{SNR}_s\big)

    Eq. (2) of `ddpm_jax.forward`; beta-tilde of Ho et al. 2020, eq. 7, at s = t - 1.

    Args:
        process: a schedule, or another process of modes.
        t: times in [0, T), int32 `[batch]`.
        s: earlier times, -1 <= s < t, int32 `[batch]`.

    Returns:
        The variance, float32 `[batch, *modes]`; 0 at `s = -1`, NaN where s is not earlier.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name.
        NoClosedForm: a chain without modes.

    References:
        Ho et al. 2020, https://arxiv.org/abs/2006.11239
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
    source: Predicts,
    target: Predicts,
) -> Float[Array, "batch *data"]:
    r"""Converts a prediction of the kind `source` to the kind `target`.

    Eq. (3) of `ddpm_jax.predictions`, which has the factors of each kind:

    .. math::

        y' = \frac{D' y + (\beta' \alpha - \alpha' \beta)\, x_t}{D}

    From eps to x0, for example, it is (x_t - b eps_hat) / a. Nothing is clipped. Where a is 0, eps
    and score carry no information about the data: x0 and v computed from them are not finite there.

    Args:
        process: a schedule, or another process of modes.
        value: of the kind `source`, `[batch, ...]`.
        x_t: the noised data, shaped as `value`.
        t: times in [0, T), int32 `[batch]`.
        source: the kind of `value`, see `ddpm_jax.predictions`.
        target: the kind of the result.

    Returns:
        The `target`, shaped as `x_t`, in its dtype. NaN where t is outside [0, T).

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, or an unknown name.
        NoClosedForm: a chain without modes.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import schedules, convert
        >>> x_t, eps_hat = jnp.ones((2, 8, 8, 1)), jnp.zeros((2, 8, 8, 1))
        >>> schedule, t = schedules.linear(1000), jnp.array([0, 999])
        >>> x0_hat = convert(schedule, eps_hat, x_t, t, source="eps", target="x0")

    References:
        Salimans & Ho 2022, https://arxiv.org/abs/2202.00512
    """
    check_images("value", value, t=t)
    check_same_shape("x_t", x_t, "value", value)
    same = resolve("source", source) == resolve("target", target)
    check_modal("process", process)
    value = value.astype(x_t.dtype)
    if same:
        return value
    y, x = (process.basis.to_modes(widened(array)) for array in (value, x_t))
    weights = conversion(weights_at(process, t, source), weights_at(process, t, target))
    of_y, of_x, divisor = (per_example(weight, x) for weight in weights)
    return process.basis.to_data((of_y * y + of_x * x) / divisor).astype(x_t.dtype)
