"""Thresholds keep x0_hat in the range of images; a sampler takes one as `threshold`.

Guidance and few steps push x0_hat outside of [-1, 1], the range of the images.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.arrays import per_example
from ddpm_jax.checks import check_float

__all__ = ["Threshold", "dynamic_threshold", "static_threshold"]

Threshold = Callable[[Array], Array]
"""`x0_hat -> x0_hat`, both `[batch, ...]`."""


def static_threshold(
    x0_hat: Float[Array, "batch *data"], limit: float = 1.0
) -> Float[Array, "batch *data"]:
    """x0_hat cut off at -limit and limit.

    Args:
        x0_hat: the estimated data, `[batch, ...]`.
        limit: above 0; images are in [-1, 1].

    Returns:
        The cut data, shaped as `x0_hat`, in its dtype.

    Raises:
        TypeError: `x0_hat` is not floating point.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import samplers
        >>> samplers.static_threshold(jnp.array([[0.5, -2.0]])).tolist()
        [[0.5, -1.0]]
    """
    check_float("x0_hat", x0_hat)
    return jnp.clip(x0_hat, -limit, limit)


def dynamic_threshold(quantile: float = 0.995, maximum: float | None = None) -> Threshold:
    r"""x0_hat scaled back by its own size, for strong guidance.

    .. math::

        \hat{x}_0 \leftarrow \frac{\mathrm{clip}(\hat{x}_0,\, -s,\, s)}{s}, \qquad
        s = \max\big(1,\ \mathrm{quantile\ of}\ |\hat{x}_0|\big)

    with the quantile over each example (Saharia et al. 2022, section 2.3).

    Args:
        quantile: in (0, 1]; 1 is the largest, and then nothing is cut off.
        maximum: of s, 1 or more; by default there is none.

    Returns:
        A function `x0_hat -> x0_hat`, for a sampler's `threshold`.

    Raises:
        ValueError: `quantile` outside (0, 1], or `maximum` below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import samplers
        >>> samplers.dynamic_threshold(1.0)(jnp.array([[0.5, -2.0], [0.5, -1.0]])).tolist()
        [[0.25, -1.0], [0.5, -1.0]]

    References:
        Saharia et al. 2022, https://arxiv.org/abs/2205.11487
    """
    if not 0.0 < quantile <= 1.0:
        raise ValueError(f"quantile is {quantile}; it has to be in (0, 1]")
    if maximum is not None and not maximum >= 1.0:
        raise ValueError(f"maximum is {maximum}; it has to be 1 or more")

    def threshold(x0_hat: Array) -> Array:
        check_float("x0_hat", x0_hat)
        size = jnp.abs(x0_hat).reshape(x0_hat.shape[0], math.prod(x0_hat.shape[1:]))
        s = per_example(jnp.clip(jnp.quantile(size, quantile, axis=1), 1.0, maximum), x0_hat)
        return jnp.clip(x0_hat, -s, s) / s

    return threshold
