"""The expected ELBO of Gaussian data with the best denoiser."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.analytic.by_modes import roots_by_modes, unknown_variance
from ddpm_jax.analytic.mixtures import Mixture, check_one_component
from ddpm_jax.arrays import einsum
from ddpm_jax.gaussians import kl_to_standard_normal
from ddpm_jax.losses import kl_weight
from ddpm_jax.processes.modal import Modal, check_modal

__all__ = ["ElboTerms", "elbo_terms"]


class ElboTerms(NamedTuple):
    """Minus the expected ELBO in nats: the parts that `bits_per_dim` has, and their sum."""

    total: Float[Array, ""]
    """prior + kl + decoder, a scalar."""
    prior: Float[Array, ""]
    """KL of what the chain leaves to the prior."""
    kl: Float[Array, ""]
    """Sum of the T - 1 KL terms, t = 1 ... T - 1."""
    decoder: Float[Array, ""]
    """Density of the data given x at t = 0."""
    per_step: Float[Array, " T"]
    """The term at each t: the decoder at index 0, then the KL terms."""


def elbo_terms(data: Mixture, process: Modal, *, shape: tuple[int, ...] | None = None) -> ElboTerms:
    r"""Minus the expected ELBO of one Gaussian in nats, with the best denoiser.

    The parts, for generative steps that have the posterior's variance (Kingma et al. 2021, eq. 13):

    .. math::

        \mathrm{prior} = \mathrm{E}\, \mathrm{KL}\big(q(x_{T-1} \mid x_0) \,\|\, p(x_{T-1})\big)

    .. math::

        \mathrm{kl}_t = \tfrac12 \big(\mathrm{SNR}_{t-1} - \mathrm{SNR}_t\big)\,
        \mathrm{E}\,|x_0 - \hat{x}_0|^2, \qquad t \ge 1

    .. math::

        \mathrm{decoder} = -\mathrm{E} \log \mathcal{N}(x_0;\, \hat{x}_0, \beta_0 I), \qquad t = 0

    The squared error is the variance of x_0 given x_t; under a schedule, with the eigenvalues
    lambda_i of the data's covariance,

    .. math::

        \mathrm{E}\,|x_0 - \hat{x}_0|^2 = \sum_i \frac{\lambda_i b^2}{a^2 \lambda_i + b^2}

    Under a process of many modes each part is a sum over modes, of which the variance is the
    diagonal of the covariance of x_0 given x_t, in modes. What `prior_term` and `vlb_terms` of
    `ddpm_jax.losses` give for draws of the data has these means. The total is never below the
    `entropy`.

    Args:
        data: one Gaussian, in d dimensions.
        process: a schedule, in O(T d), or another process of modes, in O(T d^3).
        shape: of one example; to be given where the modes of a process are fewer than the data.

    Returns:
        The parts and their sum.

    Raises:
        ValueError: more than one component: the expected error then has no closed form, so average
            the terms of a `predictor` over draws. Or a `shape` that is missing or does not hold d
            values, or a process with tables for several examples.
        NoClosedForm: a chain without modes.

    References:
        Kingma et al. 2021, https://arxiv.org/abs/2107.00630
    """
    check_modal("process", process)
    check_one_component(
        data, "the ELBO of a mixture", "losses.vlb_terms with a predictor gives it draw by draw"
    )
    t = jnp.arange(process.num_steps, dtype=jnp.int32)
    prior_variance, missing = process.prior(1)
    modes = prior_variance.shape[1:]
    shape = _shape_of_one(data, modes, shape)

    def each_mode(values: jax.Array) -> jax.Array:
        column = values.reshape(values.shape + (1,) * (1 + len(shape) - values.ndim))
        return jnp.broadcast_to(column, (len(values), *shape)).reshape(len(values), -1)

    a2, b2 = each_mode(process.signal_variance(t)), each_mode(process.noise_variance(t))
    if modes:
        (means,), (root,) = roots_by_modes(data, process, shape)
        variances = jnp.sum(jnp.square(root), axis=1)
        ratio = each_mode(process.signal(t)) / each_mode(process.noise(t))
        unknown = unknown_variance(root, ratio)
    else:  # the axes of the data are as good as any others
        means = einsum("d,de->e", data.means[0], data.axes[0])
        (variances,) = data.variances
        unknown = variances[None] * b2 / (a2 * variances[None] + b2)

    prior_variance, missing = each_mode(prior_variance), each_mode(missing)
    power = jnp.square(means) + variances  # E[x_0^2]
    prior = jnp.sum(
        kl_to_standard_normal(jnp.zeros_like(missing), missing)
        + 0.5 * a2[-1:] / prior_variance * power[None]
    )
    weight = each_mode(kl_weight(process, t[1:], predicts="x0"))
    kl = jnp.sum(weight * unknown[1:], axis=1)
    beta = each_mode(process.beta(t[:1]))
    decoder = 0.5 * jnp.sum(jnp.log(2.0 * math.pi * beta) + unknown[:1] / beta)
    total = prior + jnp.sum(kl) + decoder
    return ElboTerms(total, prior, jnp.sum(kl), decoder, jnp.append(decoder, kl))


def _shape_of_one(
    data: Mixture, modes: tuple[int, ...], shape: tuple[int, ...] | None
) -> tuple[int, ...]:
    dimensions = data.means.shape[1]
    if not modes:
        return (dimensions,)
    shape = modes if shape is None else tuple(shape)
    if math.prod(shape) != dimensions:
        raise ValueError(
            f"shape is {shape}; the data have {dimensions} dimensions, and the process the modes"
            f" {modes}: give the shape of one example"
        )
    return shape
