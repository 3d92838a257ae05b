r"""UniPC: a multistep predictor, and a corrector that costs no call of the network.

The predictor continues x0_hat from the last steps, as DPM-Solver++ does: D of eq. (2) of
`ddpm_jax.samplers.polynomials`, of the polynomial P through the last `order` values. At s the
network is called anyway, for the step that follows. Its x0_hat is one more value of the step that
led there, and the corrector takes it in: with the polynomial P' through all of them,

.. math::

    x_s^{\mathrm{corrected}} = x_s + a_s \big(1 - e^{-h}\big)
    \int_0^h w(z) \big(P'(z) - P(z)\big)\, dz \tag{1}

The network is not called again at the corrected x_s (Zhao et al. 2023, algorithms 5 and 7, data
prediction). Conditions of order alone determine the weights, but those of a straight line: there
the paper takes B(h) / 2 in the place of its mean, with

.. math::

    B_1(h) = h, \qquad B_2(h) = e^h - 1 \tag{2}

of -h, in data prediction. So both variants are the same where three values are known.

References:
    Zhao et al. 2023, https://arxiv.org/abs/2302.04867
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.predictions import Predicts
from ddpm_jax.processes.modal import Modal
from ddpm_jax.reverse import check_predicts
from ddpm_jax.samplers.base import (
    Predict,
    Sampler,
    SamplerState,
    StepInfo,
    both_times,
    everywhere,
    exponential_step,
    half_log_snr_step,
    predict_x0,
    prior_init,
)
from ddpm_jax.samplers.polynomials import (
    Past,
    differences,
    exponential_moments,
    finite,
    next_term,
    no_past,
    polynomial_weights,
    remember,
)
from ddpm_jax.samplers.thresholds import Threshold, static_threshold

__all__ = ["UniPCVariant", "unipc"]

UniPCVariant = Literal["bh1", "bh2"]
"""B(h) of eq. (2) of `ddpm_jax.samplers.unipc`: h, or e^h - 1."""


class Memory(NamedTuple):
    """The past, and what the corrector needs when x0_hat at the next time is known."""

    past: Past
    correction: tuple[Float[Array, "batch *modes"], ...]
    """Weights of x0_hat - f_0 and of f_j - f_0, where f are the past's values."""


def unipc(
    process: Modal,
    predict: Predict,
    *,
    predicts: Predicts = "eps",
    order: int = 3,
    variant: UniPCVariant = "bh2",
    corrector: bool = True,
    threshold: Threshold | None = static_threshold,
) -> Sampler:
    r"""UniPC in data prediction, one call of `predict` a step.

    .. math::

        x_s = \frac{b_s}{b_t} x_t + a_s \big(1 - e^{-h}\big) D

    with D of the polynomial through the last `order` values of x0_hat, and then eq. (1) of
    `ddpm_jax.samplers.unipc` as soon as x0_hat is known at s (Zhao et al. 2023). The predictor is
    of order `order`, the corrector raises it by one. The order builds up over the first steps; the
    step onto the data and the step out of pure noise are of first order and are not corrected. The
    order is also lower where a step is so much longer than those before it that the continuation
    would enlarge errors of x0_hat more than 32 times.

    Without the corrector and with `variant` "bh2", it is `dpm_solver_pp`.

    Args:
        process: a schedule, or another process of modes.
        predict: `(x_t, t) -> prediction`.
        predicts: what `predict` returns, see `ddpm_jax.predictions`.
        order: how many values of x0_hat the predictor uses, 1 to 3.
        variant: B(h), "bh1" or "bh2"; the paper prefers "bh1" for unconditional sampling in few
            steps, and "bh2" with guidance.
        corrector: correct x_s once x0_hat is known there.
        threshold: keeps x0_hat in the range of images, before it is extrapolated. None for no
            threshold.

    Returns:
        The sampler, for `sample`.

    Raises:
        ValueError: `order` outside 1 to 3, an unknown `variant` or `predicts`, or eps where no
            signal is left at T - 1.
        NoClosedForm: a chain without modes.

    Example:
        >>> from ddpm_jax import samplers, schedules
        >>> def predict(x_t, t):  # a network, its parameters bound
        ...     return 0.0 * x_t
        >>> sampler = samplers.unipc(schedules.cosine(1000), predict, predicts="v", order=2)

    References:
        Zhao et al. 2023, https://arxiv.org/abs/2302.04867
    """
    check_predicts(process, predicts)
    if order not in (1, 2, 3):
        raise ValueError(f"order is {order}; UniPC is of order 1, 2 or 3")
    if variant not in get_args(UniPCVariant):
        raise ValueError(f"variant is {variant!r}; it has to be 'bh1' or 'bh2'")
    length = order if corrector else order - 1  # the corrector also needs f_0 of its own step

    def begin(x_t: Array) -> Memory:
        nothing = everywhere(process, x_t.shape[0], 0.0)
        return Memory(no_past(process, x_t, length), (nothing,) * length)

    def step(
        key: jax.Array, state: SamplerState, t: jax.Array, s: jax.Array
    ) -> tuple[SamplerState, StepInfo]:
        del key  # nothing is drawn
        x_t, (past, correction) = state
        t, s = both_times(x_t, t, s)
        h = half_log_snr_step(process, t, s)
        x0_hat = predict_x0(process, predict, x_t, t, predicts=predicts, threshold=threshold)
        value = process.basis.to_modes(x0_hat)
        if corrector:
            x_t += differences(
                process, correction, (value, *past.values[1:]), past.values[0]
            ).astype(x_t.dtype)
        weights, correction = _weights(past.distances[: order - 1], h, variant)
        bend = differences(process, weights, past.values[: order - 1], value)
        x_s = exponential_step(process, x0_hat + bend.astype(x_t.dtype), x_t, t, s)
        gain = -process.signal(s) * jnp.expm1(-h)
        memory = Memory(remember(past, value, h), tuple(gain * w for w in correction[:length]))
        return SamplerState(x_s, memory), StepInfo(x_s, x0_hat)

    return Sampler(prior_init(process, begin), step)


def _weights(
    distances: tuple[Array, ...], h: Array, variant: UniPCVariant
) -> tuple[list[Array], list[Array]]:
    """Of the past x0_hat_j - x0_hat in D - x0_hat; of x0_hat_s and of them in P' - P."""
    near = [jnp.isfinite(distance) for distance in distances]
    length = finite(h)
    moves = length > 0.0
    nodes = [jnp.zeros_like(h), *(-finite(distance) for distance in distances)]
    moments = exponential_moments(length, len(nodes) + 1)
    line = 0.5 * length
    if variant == "bh1":
        line *= jnp.where(moves, length / -jnp.expm1(-jnp.where(moves, length, 1.0)), 1.0)
    predicted, counts = polynomial_weights(nodes, near, moments, line=line)
    exact, _ = polynomial_weights(nodes, near, moments)
    integral, products = next_term([*nodes, length], counts, moments)
    integral = jnp.where(counts[1], integral, line) if distances else line

    def added(product: Array, is_in: Array) -> Array:
        return jnp.where(is_in & moves, integral, 0.0) / jnp.where(is_in & moves, product, 1.0)

    corrected = [
        exact_j - predicted_j + added(product, is_in)
        for exact_j, predicted_j, product, is_in in zip(
            exact, predicted, products[1:-1], counts[1:], strict=True
        )
    ]
    return predicted, [added(products[-1], moves), *corrected]
