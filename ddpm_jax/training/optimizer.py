"""Adam with warm-up and clipping, by optax."""

from typing import Literal

import optax

__all__ = ["Decay", "learning_rate_schedule", "make_optimizer"]

Decay = Literal["constant", "cosine"]


def learning_rate_schedule(
    peak: float, *, warmup_steps: int, decay: Decay, total_steps: int
) -> optax.Schedule:
    """Linear from 0 to `peak` over `warmup_steps`, then constant or a cosine down to 0."""
    warmup = optax.linear_schedule(0.0, peak, max(warmup_steps, 1))
    if decay == "cosine":
        rest = optax.cosine_decay_schedule(peak, max(total_steps - warmup_steps, 1))
    else:
        rest = optax.constant_schedule(peak)
    return optax.join_schedules([warmup, rest], [warmup_steps])


def make_optimizer(
    learning_rate: optax.Schedule, *, b1: float, b2: float, clip_norm: float
) -> optax.GradientTransformation:
    """Adam behind a clip of the gradient's global norm."""
    return optax.chain(
        optax.clip_by_global_norm(clip_norm), optax.adam(learning_rate, b1=b1, b2=b2)
    )
