"""Mixtures of Gaussians as data: how they are made, drawn, and what is known of them at once."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from numpy.typing import ArrayLike

from ddpm_jax.arrays import einsum
from ddpm_jax.checks import check_covariance, check_float32_range, check_key

__all__ = [
    "Estimate",
    "Mixture",
    "check_dimensions",
    "check_one_component",
    "combine",
    "covariance",
    "entropy",
    "entropy_estimate",
    "gaussian",
    "in_eigenbases",
    "log_joint",
    "mean",
    "mixture",
    "sample",
]


class Mixture(NamedTuple):
    """K Gaussians in d dimensions, float32; a pytree. Make one with `gaussian` or `mixture`."""

    log_weights: Float[Array, " K"]
    """Natural logarithms of the components' probabilities, `[K]`."""
    means: Float[Array, "K d"]
    """`[K, d]`."""
    variances: Float[Array, "K d"]
    """Eigenvalues of each covariance, rising, `[K, d]`; zeros are allowed."""
    axes: Float[Array, "K d d"]
    """Their eigenvectors, orthonormal columns, `[K, d, d]`."""


class Estimate(NamedTuple):
    """A Monte Carlo mean and the standard error that its sample size leaves."""

    mean: Float[Array, ""]
    """The mean of the draws, a scalar."""
    standard_error: Float[Array, ""]
    """Of the mean: the draws' standard deviation over the root of their number."""


def gaussian(mean: ArrayLike, covariance: ArrayLike) -> Mixture:
    """The data N(mean, covariance), read in float64: a mixture of one.

    Args:
        mean: `[d]`.
        covariance: `[d, d]`, symmetric, positive semi-definite.

    Returns:
        A mixture of one component.

    Raises:
        ValueError: shapes that do not fit, values that float32 does not hold, or a covariance that
            is not symmetric or has a negative eigenvalue, by more than 1e-6 of its largest entry,
            an error that rounding to float32 may cause.

    Example:
        >>> from ddpm_jax import analytic
        >>> analytic.gaussian([0.0, 1.0], [[1.0, 0.5], [0.5, 1.0]]).variances.tolist()
        [[0.5, 1.5]]
    """
    means = _float64("mean", mean, "(d,)", 1)
    covariances = _float64("covariance", covariance, "(d, d)", 2)
    _check_shape("covariance", covariances, 2 * means.shape)
    return _from_parts(np.ones(1), means[None], [_eigenbasis("covariance", covariances)])


def mixture(weights: ArrayLike, means: ArrayLike, covariances: ArrayLike) -> Mixture:
    """Data drawn from N(means[k], covariances[k]) with probability weights[k], read in float64.

    Args:
        weights: `[K]`, each positive, summing to 1 (to 1e-6; they are then made to).
        means: `[K, d]`.
        covariances: `[K, d, d]`; all zeros make a component one point.

    Returns:
        The mixture.

    Raises:
        ValueError: as `gaussian`, and weights that are not positive or do not sum to 1.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax import analytic
        >>> two_points = analytic.mixture([0.5, 0.5], [[-1.0], [1.0]], np.zeros((2, 1, 1)))
    """
    weight = _float64("weights", weights, "(K,)", 1)
    centre = _float64("means", means, "(K, d)", 2)
    spread = _float64("covariances", covariances, "(K, d, d)", 3)
    (components,), dimensions = weight.shape, centre.shape[1]
    _check_shape("means", centre, (components, dimensions))
    _check_shape("covariances", spread, (components, dimensions, dimensions))
    for k in np.flatnonzero(weight <= 0.0):
        raise ValueError(f"weights[{k}] is {weight[k]:g}; every weight has to be above 0")
    if abs(weight.sum() - 1.0) > 1e-6:
        raise ValueError(f"weights sum to {weight.sum():.9g}; they have to sum to 1")
    bases = [_eigenbasis(f"covariances[{k}]", matrix) for k, matrix in enumerate(spread)]
    return _from_parts(weight / weight.sum(), centre, bases)


def sample(
    data: Mixture, key: Key[Array, ""], shape: tuple[int, ...]
) -> Float[Array, "batch *data"]:
    """Independent draws from the data.

    Args:
        data: the distribution, in d dimensions.
        key: typed random key.
        shape: `[batch, ...]` with d values per example.

    Returns:
        The draws, float32 of `shape`.

    Raises:
        TypeError, ValueError: `key` is not a typed key, or a shape that does not hold d values.
    """
    check_key("key", key)
    check_dimensions("shape is", shape, data)
    key_component, key_noise = jax.random.split(key)
    components, dimensions = data.means.shape
    drawn = jax.random.categorical(key_component, data.log_weights, shape=shape[:1])
    chosen = jax.nn.one_hot(drawn, components, dtype=jnp.float32)
    noise = jax.random.normal(key_noise, (shape[0], 1, dimensions), jnp.float32)
    deviations = jnp.sqrt(data.variances)[None]
    return combine(data, chosen, jnp.ones_like(chosen[:, :1]), deviations * noise).reshape(shape)


def mean(data: Mixture) -> Float[Array, " d"]:
    """E[x_0], of the flattened data.

    Args:
        data: the distribution, in d dimensions.

    Returns:
        The mean, float32 `[d]`.

    Example:
        >>> from ddpm_jax import analytic
        >>> analytic.mean(analytic.gaussian([0.0, 1.0], [[1.0, 0.5], [0.5, 1.0]])).tolist()
        [0.0, 1.0]
    """
    return einsum("k,kd->d", jnp.exp(data.log_weights), data.means)


def covariance(data: Mixture) -> Float[Array, "d d"]:
    r"""Cov[x_0], of the flattened data: what is within the components and what is between them.

    .. math::

        \sum_k w_k \big[ C_k + (m_k - m)(m_k - m)^T \big], \qquad m = \sum_k w_k m_k

    Args:
        data: the distribution, in d dimensions.

    Returns:
        The covariance, float32 `[d, d]`.
    """
    weights = jnp.exp(data.log_weights)
    within = einsum("k,kde,ke,kfe->df", weights, data.axes, data.variances, data.axes)
    offsets = data.means - mean(data)[None]
    return within + einsum("k,kd,ke->de", weights, offsets, offsets)


def entropy(data: Mixture) -> Float[Array, ""]:
    r"""Differential entropy of one Gaussian in nats.

    .. math::

        \tfrac12 \sum_i \log(2 \pi e\, \lambda_i)

    Args:
        data: one Gaussian, with the eigenvalues lambda_i of its covariance.

    Returns:
        Nats, a scalar; -inf where the covariance is singular.

    Raises:
        ValueError: more than one component: use `entropy_estimate`.

    Example:
        >>> from ddpm_jax import analytic
        >>> data = analytic.gaussian([0.0, 1.0], [[1.0, 0.0], [0.0, 1.0]])
        >>> round(float(analytic.entropy(data)), 3)
        2.838
    """
    check_one_component(data, "the entropy of a mixture", "entropy_estimate estimates it")
    return 0.5 * jnp.sum(jnp.log(2.0 * math.pi * math.e * data.variances))


def entropy_estimate(data: Mixture, key: Key[Array, ""], num: int) -> Estimate:
    """Differential entropy in nats: the mean of minus the log density of `num` draws.

    Args:
        data: the distribution, in d dimensions.
        key: typed random key.
        num: how many draws, at least 2.

    Returns:
        The estimate in nats and its standard error, scalars.

    Raises:
        TypeError, ValueError: `key` is not a typed key, or `num` is below 2.
    """
    if num < 2:
        raise ValueError(f"num is {num}; a standard error takes at least 2 draws")
    x0 = sample(data, key, (num, data.means.shape[1]))
    one = jnp.ones(num, jnp.float32)
    joint = log_joint(data, *in_eigenbases(data, x0, one, jnp.zeros_like(one)))
    nats = -jax.nn.logsumexp(joint, axis=-1)
    return Estimate(jnp.mean(nats), jnp.std(nats, ddof=1) / math.sqrt(num))


def in_eigenbases(
    data: Mixture,
    x: Float[Array, "batch d"],
    a: Float[Array, " batch"],
    noise_variance: Float[Array, " batch"],
) -> tuple[Float[Array, "batch K d"], Float[Array, "batch K d"]]:
    """y and D of eq. (1) and (2) of `denoising`, the variance that each y has."""
    centred = x[:, None, :] - a[:, None, None] * data.means[None]
    y = einsum("bkd,kde->bke", centred, data.axes)
    alpha_bar = jnp.square(a)[:, None, None]
    return y, alpha_bar * data.variances[None] + noise_variance[:, None, None]


def log_joint(data: Mixture, y: jax.Array, total_variance: jax.Array) -> Float[Array, "batch K"]:
    """log P(component k) + log q(x | component k)."""
    exponents = jnp.square(y) / total_variance + jnp.log(2.0 * math.pi * total_variance)
    return data.log_weights[None] - 0.5 * jnp.sum(exponents, axis=-1)


def combine(
    data: Mixture,
    weights: Float[Array, "batch K"],
    shift: Float[Array, "batch 1"],
    coefficients: Float[Array, "batch K d"],
) -> Float[Array, "batch d"]:
    """sum_k weights_k (shift m_k + U_k coefficients_k)."""
    within = einsum("bk,bke,kde->bd", weights, coefficients, data.axes)
    return einsum("bk,kd->bd", weights * shift, data.means) + within


def check_dimensions(what: str, shape: tuple[int, ...], data: Mixture) -> None:
    """Raises ValueError unless `shape` is `[batch, ...]` with the data's d values per example."""
    dimensions = data.means.shape[1]
    if not shape or math.prod(shape[1:]) != dimensions:
        raise ValueError(
            f"{what} {shape}; the data have {dimensions} dimensions, so it has to be (batch, ...)"
            f" with {dimensions} values per example"
        )


def check_one_component(data: Mixture, what: str, instead: str) -> None:
    """Raises ValueError for a mixture of several: `what` it lacks and what to do `instead`."""
    components = data.means.shape[0]
    if components != 1:
        raise ValueError(
            f"data have {components} components; {what} has no closed form ({instead})"
        )


def _from_parts(
    weights: np.ndarray, means: np.ndarray, bases: list[tuple[np.ndarray, np.ndarray]]
) -> Mixture:
    variances, axes = (np.stack(part) for part in zip(*bases, strict=True))
    parts = (np.log(weights), means, variances, axes)
    return Mixture(*(jnp.asarray(part.astype(np.float32)) for part in parts))


def _eigenbasis(name: str, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, none negative, and eigenvectors of a covariance."""
    eigenvalues, eigenvectors = check_covariance(name, matrix)
    # What eigh leaves of a zero: its sign and size are rounding.
    rounding = len(matrix) * np.finfo(np.float64).eps * eigenvalues[-1]
    return np.where(eigenvalues > rounding, eigenvalues, 0.0), eigenvectors


def _float64(name: str, values: ArrayLike, shape: str, rank: int) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != rank or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}; it has to be {shape}, not empty")
    check_float32_range(name, array)
    return array


def _check_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; it has to be {shape}")
