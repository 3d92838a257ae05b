r"""Classical solvers of the probability-flow ODE, at integer times alone.

The flow dx = [f x - g^2 score / 2] dt (Song et al. 2021, eq. 13, https://arxiv.org/abs/2011.13456)
loses its linear part in y = x / a, and its clock in sigma = b / a (Karras et al. 2022, eq. 4,
https://arxiv.org/abs/2206.00364):

    dy / dsigma = eps_hat(a y, t).

Euler's step in sigma is DDIM's: x_s = a_s x0_hat + b_s eps_hat. Both solvers here are that step and
a correction made of differences of eps_hat, which vanishes on the step onto the data and on the
step out of pure noise, where sigma is infinite. A network knows integer times alone, so a solver
whose stages fall between the times of the grid (Runge-Kutta of order 4, or one that chooses its
steps) cannot be used with it; Heun's second stage falls on s, and a multistep method has none.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.arrays import per_example
from ddpm_jax.forward import Predicts, convert
from ddpm_jax.processes import Modal
from ddpm_jax.processes.weights import mix
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
from ddpm_jax.samplers.thresholds import Threshold, static_threshold

__all__ = ["heun", "probability_flow"]


def heun(
    process: Modal,
    predict: Predict,
    *,
    predicts: Predicts = "eps",
    threshold: Threshold | None = static_threshold,
) -> Sampler:
    """Heun's rule in sigma, of second order, two calls of `predict` a step.

    Euler's step to s, then the mean of eps_hat at both its ends (Karras et al. 2022, algorithm 1):

        x_s = Euler + a_s (sigma_s - sigma_t) / 2 (eps_hat(Euler, s) - eps_hat(x_t, t)).

    Args:
        process: a schedule, or another process of modes.
        predict: `(x_t, t) -> prediction`.
        predicts: what `predict` returns.
        threshold: what keeps x0_hat inside; eps_hat is then the noise that agrees with it. None
            leaves it as it is.

    Raises:
        ValueError: an unknown `predicts`, or eps where no signal is left at T - 1.
    """
    check_predicts(process, predicts)

    def believe(x_t: Array, t: Array) -> tuple[Array, Array]:
        x0_hat = predict_x0(process, predict, x_t, t, predicts=predicts, threshold=threshold)
        return x0_hat, convert(process, x0_hat, x_t, t, source="x0", target="eps")

    def step(
        key: jax.Array, state: SamplerState, t: jax.Array, s: jax.Array
    ) -> tuple[SamplerState, StepInfo]:
        del key  # nothing is drawn
        x_t = state.x_t
        t, s = both_times(x_t, t, s)
        x0_hat, eps_hat = believe(x_t, t)
        euler = exponential_step(process, x0_hat, x_t, t, s)
        _, eps_hat_s = believe(euler, jnp.maximum(s, 0))  # its weight is 0 at s = -1
        # a_s sigma_t = b_s exp(h), so a_s (sigma_s - sigma_t) = -b_s (exp(h) - 1).
        weight = -0.5 * process.noise(s) * jnp.expm1(_finite_step(process, t, s))
        x_s = euler + mix(process, (weight, eps_hat_s - eps_hat))
        return SamplerState(x_s), StepInfo(x_s, x0_hat)

    return Sampler(prior_init(process), step)


class Past(NamedTuple):
    """What the steps before have seen, the latest first."""

    eps_hats: tuple[Float[Array, "batch *data"], ...]
    """By modes, each of which has a sigma of its own."""
    distances: tuple[Float[Array, "batch *modes"], ...]
    """How far their lambda lies below that of x_t; infinite where there was no step, or one out of
    pure noise."""


def probability_flow(
    process: Modal,
    predict: Predict,
    *,
    predicts: Predicts = "eps",
    order: int = 4,
    threshold: Threshold | None = static_threshold,
) -> Sampler:
    """Adams-Bashforth in sigma, of order 1 to 4, one call of `predict` a step.

    The polynomial through eps_hat at the last `order` times is integrated from sigma_t to sigma_s,
    wherever the times lie; rho-AB of Zhang & Chen 2023 (https://arxiv.org/abs/2204.13902). The
    order builds up over the first steps, and is 1 onto the data. In the limit of many steps the
    first one's error would rule the orders above 2, but near pure noise, where it is made, the flow
    is all but straight: measured over 64 to 256 steps, orders 3 and 4 are 2.9 and 3.8.

    Args:
        process: a schedule, or another process of modes.
        predict: `(x_t, t) -> prediction`.
        predicts: what `predict` returns.
        order: how many values of eps_hat are used, 1 to 4; 1 is DDIM.
        threshold: what keeps x0_hat inside; eps_hat is then the noise that agrees with it. None
            leaves it as it is.

    Raises:
        ValueError: `order` outside 1 to 4, an unknown `predicts`, or eps where no signal is left at
            T - 1.
    """
    check_predicts(process, predicts)
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order is {order}; it has to be 1, 2, 3 or 4")

    def init(key: Array, shape: tuple[int, ...], start: Array | None = None) -> SamplerState:
        state = prior_init(process)(key, shape, start)
        nothing = jnp.zeros_like(process.basis.to_modes(state.x_t))
        never = everywhere(process, shape[0], jnp.inf)
        return state._replace(memory=Past((nothing,) * (order - 1), (never,) * (order - 1)))

    def step(
        key: jax.Array, state: SamplerState, t: jax.Array, s: jax.Array
    ) -> tuple[SamplerState, StepInfo]:
        del key  # nothing is drawn
        x_t, past = state
        t, s = both_times(x_t, t, s)
        x0_hat = predict_x0(process, predict, x_t, t, predicts=predicts, threshold=threshold)
        eps_hat = convert(process, x0_hat, x_t, t, source="x0", target="eps")
        eps_hat = process.basis.to_modes(eps_hat)
        h = _finite_step(process, t, s)
        euler = exponential_step(process, x0_hat, x_t, t, s)
        bend = _integral_of_bend(eps_hat, past, -jnp.expm1(-h))
        bend = per_example(process.noise(s) * jnp.exp(h), bend) * bend
        x_s = euler - process.basis.to_data(bend).astype(x_t.dtype)
        h = half_log_snr_step(process, t, s)
        seen = Past(
            (eps_hat, *past.eps_hats)[: order - 1],
            (h, *(h + distance for distance in past.distances))[: order - 1],
        )
        # Where sigma stays, the next eps_hat takes the place of this one.
        past = jax.tree.map(
            lambda new, old: jnp.where(per_example(h == 0.0, new), old, new), seen, past
        )
        return SamplerState(x_s, past), StepInfo(x_s, x0_hat)

    return Sampler(init, step)


def _finite_step(process: Modal, t: Array, s: Array) -> Array:
    """h, and 0 where it is infinite: what is multiplied by an expm1 of it vanishes there."""
    h = half_log_snr_step(process, t, s)
    return jnp.where(jnp.isinf(h), 0.0, h)


def _integral_of_bend(eps_hat: Array, past: Past, end: Array) -> Array:
    r"""Integral over z from 0 to `end` of P(z) - eps_hat, z = 1 - sigma / sigma_t.

    P is the polynomial through eps_hat at z = 0 and the past ones at z = -g, g = exp(distance) - 1,
    in Newton's form: eps_hat + z f[0, 1] + z (z + g_1) f[0, 1, 2] + ..., f divided differences. All
    terms of the integrals are positive, and a node that is not there takes its term with it.
    """
    known = [jnp.isfinite(distance) for distance in past.distances]
    g = [jnp.zeros_like(end)]
    for distance, is_known in zip(past.distances, known, strict=True):
        # Unknown ones come last; any place beyond the others serves.
        g.append(jnp.where(is_known, jnp.expm1(jnp.where(is_known, distance, 0.0)), g[-1] + 1.0))
    differences = [eps_hat, *past.eps_hats]
    basis = [jnp.ones_like(end)]  # coefficients of 1, z, z^2, ...
    total = jnp.zeros_like(eps_hat)
    for order, is_known in enumerate(known, start=1):
        differences = [
            (later - earlier) / per_example(g[i + order] - g[i], eps_hat)
            for i, (later, earlier) in enumerate(itertools.pairwise(differences))
        ]
        shifted = [jnp.zeros_like(end), *basis]
        basis = [
            up + g[order - 1] * same
            for up, same in zip(shifted, [*basis, jnp.zeros_like(end)], strict=True)
        ]
        integral = sum(c * end ** (power + 1) / (power + 1) for power, c in enumerate(basis))
        total += per_example(jnp.where(is_known, integral, 0.0), eps_hat) * differences[0]
    return total
