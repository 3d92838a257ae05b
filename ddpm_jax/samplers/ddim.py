"""DDIM and its inversion: sampling in few steps, with less noise or none."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddpm_jax.arrays import normal, per_example, root
from ddpm_jax.checks import check_float, check_scalar
from ddpm_jax.compiled import call_compiled
from ddpm_jax.forward import convert
from ddpm_jax.predictions import Predicts
from ddpm_jax.processes.modal import Modal, mix
from ddpm_jax.reverse import check_predicts
from ddpm_jax.samplers.base import (
    Predict,
    Sampler,
    SamplerState,
    StepInfo,
    both_times,
    check_steps,
    following,
    half_log_snr_step,
    nan_unless_falling,
    posterior_deviation,
    predict_x0,
    prior_init,
    x0_of_prediction,
)
from ddpm_jax.samplers.thresholds import Threshold, static_threshold

__all__ = ["ddim", "ddim_inversion"]


def ddim(
    process: Modal,
    predict: Predict,
    *,
    predicts: Predicts = "eps",
    eta: float | Float[Array, ""] = 0.0,
    threshold: Threshold | None = static_threshold,
    noise_after_threshold: bool = True,
) -> Sampler:
    r"""Moves x_t to x_s along the predicted noise, with fresh noise or without.

    .. math::

        x_s = a_s \hat{x}_0 + \sqrt{b_s^2 - \sigma^2}\, \hat\epsilon + \sigma z, \qquad
        \sigma^2 = \eta^2\, b_s^2 (1 - r), \qquad r = \mathrm{SNR}_t / \mathrm{SNR}_s

    (Song et al. 2021, eq. 12 and 16), computed with

    .. math::

        b_s^2 - \sigma^2 = b_s^2 \big(1 - \eta^2 + \eta^2 r\big)

    `eta` = 0 is deterministic, a first-order solver of the probability-flow ODE; `eta` = 1 adds the
    posterior's noise and is ancestral sampling.

    Args:
        process: a schedule, or another process of modes.
        predict: `(x_t, t) -> prediction`.
        predicts: what `predict` returns, see `ddpm_jax.predictions`.
        eta: share of the posterior's standard deviation that is drawn afresh, in [0, 1]. May be
            traced, and is then not checked.
        threshold: keeps x0_hat in the range of images. None for no threshold.
        noise_after_threshold: eps_hat is the noise that agrees with x0_hat after its threshold;
            otherwise the predicted one, as in diffusers' pipelines.

    Returns:
        The sampler, for `sample`.

    Raises:
        ValueError: `eta` outside [0, 1], an unknown `predicts`, or eps where no signal is left at T
            - 1.
        NoClosedForm: a chain without modes.

    Example:
        >>> from ddpm_jax import samplers, schedules
        >>> def predict(x_t, t):  # a network, its parameters bound
        ...     return 0.0 * x_t
        >>> sampler = samplers.ddim(schedules.cosine(1000), predict, predicts="v", eta=0.5)

    References:
        Song et al. 2021, https://arxiv.org/abs/2010.02502
    """
    check_predicts(process, predicts)
    known = check_scalar("eta", eta)
    if known is not None and not 0.0 <= known <= 1.0:
        raise ValueError(f"eta is {eta}; it has to be in [0, 1]")

    def step(
        key: jax.Array, state: SamplerState, t: jax.Array, s: jax.Array
    ) -> tuple[SamplerState, StepInfo]:
        x_t = state.x_t
        t, s = both_times(x_t, t, s)
        output = predict(x_t, process.network_time(t))
        x0_hat = x0_of_prediction(process, output, x_t, t, predicts=predicts, threshold=threshold)
        if noise_after_threshold:
            eps_hat = convert(process, x0_hat, x_t, t, source="x0", target="eps")
        else:
            eps_hat = convert(process, output, x_t, t, source=predicts, target="eps")
        # b_s^2 - sigma^2 as a sum of two that are not negative: close to pure noise, where eta = 1
        # leaves next to nothing of b_s^2, their difference has no digits.
        r = jnp.exp(process.log_snr_difference(t, s))
        left = (1.0 - eta) * (1.0 + eta) + eta**2 * r
        left = jnp.where(per_example(s < 0, left), 1.0, jnp.maximum(left, 0.0))  # times b_s = 0
        left = jnp.where(per_example(s < t, left), left, jnp.nan)
        terms = [(process.signal(s), x0_hat), (process.noise(s) * root(left), eps_hat)]
        if known != 0.0:
            noise = normal(key, x_t.shape, x_t.dtype)
            terms.append((eta * posterior_deviation(process, t, s), noise))
        x_s = mix(process, *terms)
        return SamplerState(x_s), StepInfo(x_s, x0_hat)

    return Sampler(prior_init(process), step)


def ddim_inversion(
    process: Modal,
    predict: Predict,
    x0: Float[Array, "batch *data"],
    times: Int[Array, " steps"],
    *,
    predicts: Predicts = "eps",
    iterations: int = 1,
) -> Float[Array, "batch *data"]:
    r"""The x at times[0] from which deterministic DDIM arrives at `x0`, as one compiled scan.

    The step of `ddim` from t to s without a threshold, inverted (Song et al. 2021, eq. 14): given
    x_s it is an equation for x_t,

    .. math::

        x_t = \frac{a_t}{a_s} x_s + b_t \big(1 - e^{-h}\big)\, \hat\epsilon(x_t, t), \qquad
        e^h = \frac{a_s}{a_t} \frac{b_t}{b_s}

    solved by fixed-point iteration from x_t = x_s (Pan et al. 2023). One iteration is the usual
    explicit inversion, whose error falls as the step; each further one divides the error by a
    factor that grows as the steps get shorter. For an exact denoiser of Gaussian data, the
    iteration always converges. `sample(ddim(...), start=...)` of the result at the same `times`,
    without a threshold, is `x0` again. From a time that has no signal the step is x_s = a_s x0_hat
    + (b_s / b_t) x_t instead, solved for x_t.

    Args:
        process: a schedule, or another process of modes.
        predict: `(x_t, t) -> prediction`.
        x0: data, `[batch, ...]`.
        times: the falling times that the sampler will visit, integers `[steps]`. Where they do not
            fall, the result is NaN.
        predicts: what `predict` returns, see `ddpm_jax.predictions`.
        iterations: at least 1; each calls `predict` once.

    Returns:
        x at times[0], shaped as `x0`, in its dtype.

    Raises:
        TypeError, ValueError: `x0` not floating point, `times` no vector of integers, `iterations`
            below 1, an unknown `predicts`, or eps where no signal is left at T - 1.
        NoClosedForm: a chain without modes.

    References:
        - Song et al. 2021, https://arxiv.org/abs/2010.02502
        - Pan et al. 2023, https://arxiv.org/abs/2309.04907
    """
    check_predicts(process, predicts)
    check_float("x0", x0)
    check_steps(times)
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; it has to be at least 1")

    def run(x0: Array, times: Array) -> Array:
        def step(x_s: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
            t, s = both_times(x_s, *pair)
            h = half_log_snr_step(process, t, s)
            a_s, b_s = process.signal(s), process.noise(s)
            silent = jnp.isinf(h) & per_example(s >= 0, h)

            def iterate(_: Array, x_t: Array) -> Array:
                x0_hat = predict_x0(process, predict, x_t, t, predicts=predicts, threshold=None)
                eps_hat = convert(process, x0_hat, x_t, t, source="x0", target="eps")
                weight_x_s, weight_eps = process.signal(t) / a_s, -process.noise(t) * jnp.expm1(-h)
                if not process.zero_terminal_snr:
                    return mix(process, (weight_x_s, x_s), (weight_eps, eps_hat))
                louder = process.noise(t) / jnp.where(silent, b_s, 1.0)
                return mix(
                    process,
                    (jnp.where(silent, louder, weight_x_s), x_s),
                    (jnp.where(silent, 0.0, weight_eps), eps_hat),
                    (jnp.where(silent, -a_s * louder, 0.0), x0_hat),
                )

            return jax.lax.fori_loop(0, iterations, iterate, x_s), None

        x_T, _ = jax.lax.scan(step, x0, (times[::-1], following(times)[::-1]))
        return nan_unless_falling(x_T, times)

    return call_compiled(run, x0, times)
