"""RePaint: known pixels are put in at every step, and the sampler fills in the rest."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ddpm_jax.arrays import normal, per_example, split
from ddpm_jax.checks import check_float
from ddpm_jax.forward import q_sample, q_transition
from ddpm_jax.processes.modal import Modal, check_modal
from ddpm_jax.samplers.base import Sampler, SamplerState, StepInfo, both_times

__all__ = ["inpaint"]


def inpaint(
    sampler: Sampler,
    process: Modal,
    known: Float[Array, "batch *data"],
    mask: Bool[Array, "batch *data"],
    *,
    resamplings: int = 1,
) -> Sampler:
    """`sampler` with the pixels under `mask` held to `known` (RePaint).

    After a step from t to s the known pixels become a fresh q_sample(known, s); at s = -1 that is
    `known` itself, exactly (Lugmayr et al. 2022, algorithm 1). Where a process mixes pixels, as
    blurring does, the noised known pixels depend on unknown ones, which are taken from x0_hat. The
    step that moved the unknown pixels did not see the noise of the known ones. To make both agree,
    x_s is noised back to t by `q_transition` and the step is repeated, `resamplings` times in all,
    also the last step onto the data (which the paper takes once). The result does not follow the
    posterior exactly, but comes closer with more resamplings.

    The memory of a multistep sampler belongs to the path that it came on, and fresh noise leaves
    that path. So a repeated step starts without memory, at first order; with it, x would move away
    at each resampling, without bound.

    Args:
        sampler: any sampler.
        process: its process, of modes.
        known: images, `[batch, ...]`; what is not under the mask does not matter.
        mask: bool, shaped as `known`; True marks known pixels.
        resamplings: how many times each step is taken, at least 1.

    Returns:
        A Sampler for images shaped as `known`. Its x0_hat is that of `sampler`.

    Raises:
        TypeError, ValueError: `known` not floating point, `mask` not bool or of another shape,
            `resamplings` below 1; and from `init`, images of another shape.
        NoClosedForm: a chain without modes.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import samplers, schedules
        >>> schedule, known = schedules.cosine(1000), jnp.zeros((1, 8, 8, 1))
        >>> sampler = samplers.ddim(schedule, lambda x_t, t: 0.0 * x_t, predicts="v", eta=1.0)
        >>> mask = jnp.zeros(known.shape, bool).at[:, :4].set(True)  # the upper half is known
        >>> sampler = samplers.inpaint(sampler, schedule, known, mask, resamplings=5)

    References:
        Lugmayr et al. 2022, https://arxiv.org/abs/2201.09865
    """
    check_modal("process", process)
    check_float("known", known)
    if not (hasattr(mask, "dtype") and mask.dtype == jnp.bool_):
        kind = getattr(mask, "dtype", type(mask).__name__)
        raise TypeError(f"mask is a {kind}; it has to be an array of bool, True where it is known")
    if mask.shape != known.shape:
        raise ValueError(f"mask has shape {mask.shape}; it has to be that of known, {known.shape}")
    if resamplings < 1:
        raise ValueError(f"resamplings is {resamplings}; it has to be at least 1")

    def under_mask() -> Array:
        return jnp.where(mask, known, 0.0)  # NaN may mark what is not known

    def init(key: Array, shape: tuple[int, ...], start: Array | None = None) -> SamplerState:
        if tuple(shape) != known.shape:
            raise ValueError(f"shape is {shape}; it has to be that of known, {known.shape}")
        x_T = sampler.init(key, shape, start).x_t
        # Nothing is added, but on an explicit mesh the images then lie where `known` does.
        return sampler.init(key, shape, x_T + 0.0 * under_mask().astype(x_T.dtype))

    def step(
        key: jax.Array, state: SamplerState, t: jax.Array, s: jax.Array
    ) -> tuple[SamplerState, StepInfo]:
        t_each, s_each = both_times(state.x_t, t, s)

        def once(state: SamplerState, key: Array) -> tuple[SamplerState, StepInfo]:
            """From t to s, with what is known put in."""
            step_key, noise_key = split(key)
            moved, info = sampler.step(step_key, state, t, s)
            noise = normal(noise_key, moved.x_t.shape, moved.x_t.dtype)
            x0 = jnp.where(mask, under_mask().astype(moved.x_t.dtype), info.x0_hat)
            there = q_sample(process, x0, s_each, noise)
            there = jnp.where(per_example(s_each < 0, there), x0, there)  # without rounding
            x_s = jnp.where(mask, there, moved.x_t)
            return moved._replace(x_t=x_s), info._replace(x_s=x_s)

        def once_and_back(state: SamplerState, key: Array) -> tuple[SamplerState, None]:
            """From t to s and up to t again, as a new start."""
            once_key, noise_key, init_key = split(key, 3)
            x_s = once(state, once_key)[0].x_t
            noise = normal(noise_key, x_s.shape, x_s.dtype)
            x_t = q_transition(process, x_s, t_each, s_each, noise)
            return sampler.init(init_key, x_t.shape, x_t), None

        keys = split(key, resamplings)
        if resamplings > 1:
            state, _ = jax.lax.scan(once_and_back, state, keys[:-1])
        return once(state, keys[-1])

    return Sampler(init, step)
