r"""Single-step solvers, whose stages are consecutive times of the grid.

A Runge-Kutta method calls the network at times within a step of its own. Here these are times of
the grid: a *block* is 2 or 3 consecutive steps, and each of them starts anew from where its block
began, with all that was estimated since then. So there is one call of the network a step, x has an
order more after each step of the block, and nothing is remembered from one block to the next.

Of an incomplete block at the end, the steps that were taken are of their lower order.

References:
    - Lu et al. 2022, https://arxiv.org/abs/2206.00927 and https://arxiv.org/abs/2211.01095
    - Liu et al. 2023, https://arxiv.org/abs/2209.03003
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

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
    exponential_step,
    finish,
    half_log_snr_step,
    predict_x0,
    prior_init,
)
from ddpm_jax.samplers.polynomials import (
    LARGEST_GROWTH,
    differences,
    exponential_moments,
    finite,
    polynomial_weights,
)
from ddpm_jax.samplers.thresholds import Threshold, static_threshold

__all__ = ["dpm_solver_pp_single", "midpoint"]


class Block(NamedTuple):
    """Where the current block began, and what was estimated at its times, the earliest first."""

    taken: Int[Array, ""]
    """How many of its steps were taken; with 0, the next step begins a block."""
    x_t: Float[Array, "batch *data"]
    """The images at its first time."""
    times: tuple[Int[Array, ""], ...]
    """All but the last of its times."""
    x0_hats: tuple[Float[Array, "batch *data"], ...]
    """The data that were estimated there."""


def dpm_solver_pp_single(
    process: Modal,
    predict: Predict,
    *,
    predicts: Predicts = "eps",
    order: int = 2,
    threshold: Threshold | None = static_threshold,
) -> Sampler:
    r"""Single-step DPM-Solver++ (2S and 3S), one call of `predict` a step.

    With r for the first time of the block, t for the current one, and h = lambda_s - lambda_r,

    .. math::

        x_s = \frac{b_s}{b_r} x_r + a_s \big(1 - e^{-h}\big) D

    The first step of a block has D = x0_hat(r) and is DDIM's. The second takes x0_hat in the middle
    of h, on the straight line through x0_hat(r) and x0_hat(t) (2S: Lu et al. 2022b, algorithm 1);
    at order 3 its mean over h, and the third step that of the parabola through all three values,
    eq. (2) of `ddpm_jax.samplers.polynomials`. Order 3 needs blocks whose steps are equally long in
    lambda, as on the "log_snr" grid and, the more steps the better, on every smooth grid. Otherwise
    the error of the block's first step leaves order 2: the end of the block is not known when that
    step is taken.

    The step onto the data is x0_hat itself, whatever its place in a block, and after a step out of
    pure noise a new block begins.

    Args:
        process: a schedule, or another process of modes.
        predict: `(x_t, t) -> prediction`.
        predicts: what `predict` returns, see `ddpm_jax.predictions`.
        order: 2 (2S) or 3 (3S), the length of a block.
        threshold: keeps x0_hat in the range of images, before it is extrapolated. None for no
            threshold.

    Returns:
        The sampler, for `sample`.

    Raises:
        ValueError: `order` other than 2 or 3, an unknown `predicts`, or eps where no signal is left
            at T - 1.
        NoClosedForm: a chain without modes.

    Example:
        >>> from ddpm_jax import samplers, schedules
        >>> def predict(x_t, t):  # a network, its parameters bound
        ...     return 0.0 * x_t
        >>> sampler = samplers.dpm_solver_pp_single(schedules.cosine(1000), predict, predicts="v")

    References:
        - Lu et al. 2022a, https://arxiv.org/abs/2206.00927
        - Lu et al. 2022b, https://arxiv.org/abs/2211.01095
    """
    check_predicts(process, predicts)
    if order not in (2, 3):
        raise ValueError(f"order is {order}; single-step DPM-Solver++ is of order 2 or 3")

    def step(
        key: jax.Array, state: SamplerState, t: jax.Array, s: jax.Array
    ) -> tuple[SamplerState, StepInfo]:
        del key  # nothing is drawn
        x_t, block = state
        t_each, s_each = both_times(x_t, t, s)
        x0_hat = predict_x0(process, predict, x_t, t_each, predicts=predicts, threshold=threshold)
        begins = (block.taken == 0) | (s < 0)
        block = _enter(block, begins, x_t, t, x0_hat)
        first, *later = (both_times(x_t, time, s)[0] for time in block.times)
        h = half_log_snr_step(process, first, s_each)
        # The nodes are the first time, the current one, and at order 3 the one between them.
        reached = [(t_each, x0_hat, block.taken >= 1)]
        if order == 3:
            reached.append((later[0], block.x0_hats[1], block.taken >= 2))
        nodes, near = [jnp.zeros_like(h)], []
        for time, _, is_in in reached:
            time = jnp.where(is_in, time, s_each)  # from pure noise to itself would be NaN
            nodes.append(finite(half_log_snr_step(process, first, time)))
            near.append(jnp.broadcast_to(is_in, h.shape))
        length = finite(h)
        weights, _ = polynomial_weights(
            nodes,
            near,
            exponential_moments(length, len(nodes)),
            line=0.5 * length if order == 2 else None,
        )
        values = [process.basis.to_modes(value) for _, value, _ in reached]
        begun = process.basis.to_modes(block.x0_hats[0])
        bend = differences(process, weights, values, begun).astype(x_t.dtype)
        x_s = exponential_step(process, block.x0_hats[0] + bend, block.x_t, first, s_each)
        silent = t == process.num_steps - 1 if process.zero_terminal_snr else False
        taken = jnp.where(silent, 0, (block.taken + 1) % order)
        return SamplerState(x_s, block._replace(taken=taken)), StepInfo(x_s, x0_hat)

    return Sampler(prior_init(process, lambda x_t: _no_block(x_t, order)), step)


def midpoint(
    process: Modal,
    predict: Predict,
    *,
    predicts: Predicts = "eps",
    threshold: Threshold | None = static_threshold,
) -> Sampler:
    r"""The midpoint rule in the time of rectified flow, of second order, one call a step.

    In y = x / (a + b) and u = b / (a + b), every chain is a rectified flow (Liu et al. 2023):

    .. math::

        y_t = (1 - u)\, x_0 + u\, \epsilon, \qquad \frac{dy}{du} = v = \hat\epsilon - \hat{x}_0

    Euler's step in u is DDIM's without noise, exactly: (a_s + b_s) y_s = a_s x0_hat + b_s eps_hat.
    With r for the first time of a block, t for the current one, and H = u_s - u_r < 0, the first
    step of a block is Euler's, and the second

    .. math::

        y_s = y_r + H\, v_r + \frac{H^2}{2 (u_t - u_r)} \big(v_t - v_r\big)

    which is the midpoint rule where u_t is in the middle, and of second order wherever it is. It is
    the same onto the data, at u = 0, and out of pure noise, at u = 1: both are ordinary values of
    u. With an odd number of steps, the last one is Euler's; so is a block that would
    enlarge errors of x0_hat more than 32 times.

    Args:
        process: a schedule, or another process of modes.
        predict: `(x_t, t) -> prediction`.
        predicts: what `predict` returns, see `ddpm_jax.predictions`.
        threshold: keeps x0_hat in the range of images; eps_hat is then the noise that agrees with
            it. It is applied to the finished images, too. None for no threshold.

    Returns:
        The sampler, for `sample`.

    Raises:
        ValueError: an unknown `predicts`, or eps where no signal is left at T - 1.
        NoClosedForm: a chain without modes.

    Example:
        >>> from ddpm_jax import samplers, schedules
        >>> def predict(x_t, t):  # a network, its parameters bound
        ...     return 0.0 * x_t
        >>> sampler = samplers.midpoint(schedules.cosine(1000), predict, predicts="v")

    References:
        Liu et al. 2023, https://arxiv.org/abs/2209.03003
    """
    check_predicts(process, predicts)

    def velocity(x0_hat: Array, x_t: Array, t: Array) -> Array:
        return convert(process, x0_hat, x_t, t, source="x0", target="flow")

    def step(
        key: jax.Array, state: SamplerState, t: jax.Array, s: jax.Array
    ) -> tuple[SamplerState, StepInfo]:
        del key  # nothing is drawn
        x_t, block = state
        t_each, s_each = both_times(x_t, t, s)
        x0_hat = predict_x0(process, predict, x_t, t_each, predicts=predicts, threshold=threshold)
        block = _enter(block, block.taken == 0, x_t, t, x0_hat)
        first, _ = both_times(x_t, block.times[0], s)
        end = _flow_distance(process, first, s_each)
        # From pure noise to itself would be NaN.
        passed = _flow_distance(process, first, jnp.where(block.taken >= 1, t_each, s_each))
        # v has the errors of x0_hat divided by u_t; near the data they could be enlarged at will.
        a_t, b_t = process.signal(t_each), process.noise(t_each)
        bound = 2.0 * LARGEST_GROWTH * passed * b_t / (a_t + b_t)
        near = (block.taken >= 1) & (jnp.square(end) <= bound)
        (weight,), _ = polynomial_weights(
            [jnp.zeros_like(end), passed], [near], [end, 0.5 * jnp.square(end)]
        )
        bend = velocity(x0_hat, x_t, t_each) - velocity(block.x0_hats[0], block.x_t, first)
        x_s = exponential_step(process, block.x0_hats[0], block.x_t, first, s_each)
        x_s -= mix(process, ((process.signal(s_each) + process.noise(s_each)) * weight, bend))
        x_s, x0_hat = finish(x_s, x0_hat, s_each, threshold)
        block = block._replace(taken=(block.taken + 1) % 2)
        return SamplerState(x_s, block), StepInfo(x_s, x0_hat)

    return Sampler(prior_init(process, lambda x_t: _no_block(x_t, 2)), step)


def _no_block(x_t: Array, order: int) -> Block:
    """Before the first block of `order` steps."""
    zero, nothing = jnp.zeros((), jnp.int32), jnp.zeros_like(x_t)
    return Block(zero, nothing, (zero,) * (order - 1), (nothing,) * (order - 1))


def _enter(block: Block, begins: Array, x_t: Array, t: Array, x0_hat: Array) -> Block:
    """The block with the current images, time and x0_hat in the places that are theirs."""
    taken = jnp.where(begins, 0, block.taken)

    def put(values: tuple[Array, ...], value: Array) -> tuple[Array, ...]:
        return tuple(jnp.where(taken == i, value, old) for i, old in enumerate(values))

    return Block(
        taken,
        jnp.where(begins, x_t, block.x_t),
        put(block.times, t.astype(jnp.int32)),
        put(block.x0_hats, x0_hat),
    )


def _flow_distance(process: Modal, t: Array, s: Array) -> Array:
    """u_t - u_s, u = b / (a + b), without cancellation: u_t (1 - u_s) (1 - exp(-h))."""
    a_t, b_t, a_s, b_s = process.signal(t), process.noise(t), process.signal(s), process.noise(s)
    h = half_log_snr_step(process, t, s)
    return -b_t / (a_t + b_t) * a_s / (a_s + b_s) * jnp.expm1(-h)
