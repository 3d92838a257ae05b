r"""Data whose best denoiser is known in closed form: what to check a sampler or a loss against.

Data distributed as a mixture of Gaussians, sum_k w_k N(m_k, C_k), stay one under the forward
process. With a = sqrt(alpha_bar_t) and b = sqrt(1 - alpha_bar_t), and in the eigenbasis of each
covariance, C_k = U_k diag(lambda_k) U_k^T,

    (1)  x_t ~ sum_k w_k N(a m_k, U_k diag(D_k) U_k^T),       D_k = a^2 lambda_k + b^2
    (2)  y_k = U_k^T (x_t - a m_k),       r_k = P(component k | x_t)       by Bayes' rule

and within a component everything is linear in x_t. The best prediction in mean squared error is
the conditional mean, for the mixture the one of (3) weighted with r_k:

    (3)  E[target | x_t, k] = shift m_k + U_k (gain y_k)
             target    shift    gain
             eps       0        b / D_k
             x0        1        a lambda_k / D_k
             v         -b       a b (1 - lambda_k) / D_k
             score     0        -1 / D_k

The score is the gradient of log q(x_t), and eps = -b score is Tweedie's formula (Efron 2011,
https://doi.org/10.1198/jasa.2011.tm11181). Each row of (3) is computed as it stands, not from
another, so it holds at both ends of the chain, on a chain that ends in nothing but noise (a = 0)
and for data without variance (lambda = 0), where conversions divide by a or b.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddpm_jax.analytic.mixtures import (
    Mixture,
    check_dimensions,
    check_one_component,
    combine,
    in_eigenbases,
    log_joint,
)
from ddpm_jax.checks import check_float, check_kind, check_quantity, check_times
from ddpm_jax.forward import Predicts, Quantity
from ddpm_jax.gaussians import kl_to_standard_normal
from ddpm_jax.losses import kl_weight
from ddpm_jax.samplers import Predict
from ddpm_jax.schedules import Schedule

__all__ = ["ElboTerms", "denoise", "elbo_terms", "log_density", "predictor"]


class ElboTerms(NamedTuple):
    """Minus the expected ELBO in nats: the parts that `bits_per_dim` has, and their sum."""

    total: Float[Array, ""]
    prior: Float[Array, ""]
    """KL of what the chain leaves to the standard normal."""
    kl: Float[Array, ""]
    """Sum of the T - 1 KL terms, t = 1 ... T - 1."""
    decoder: Float[Array, ""]
    """Density of the data given x at t = 0."""
    per_step: Float[Array, " T"]
    """The term at each t: the decoder at index 0, then the KL terms."""


def denoise(
    data: Mixture,
    schedule: Schedule,
    x_t: Float[Array, "batch *data"],
    t: Int[Array, " batch"],
    *,
    target: Quantity,
) -> Float[Array, "batch *data"]:
    """E[target | x_t], eq. (3): the prediction that no network betters in mean squared error.

    Args:
        data: the distribution of x_0, in d dimensions.
        schedule: the tables.
        x_t: noised data of any shape with d values per example.
        t: times in [0, T), or -1 for the data themselves if no covariance is singular.
        target: eps, x0, v or score.

    Returns:
        Shape and dtype of `x_t`; computed in float32.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, or an unknown `target`.
    """
    _check_noised(data, x_t, t)
    check_quantity("target", target)
    y, total_variance = _noised(data, schedule, x_t, t)
    a, b = schedule.signal(t)[:, None, None], schedule.noise(t)[:, None, None]
    variances = data.variances[None]
    match target:
        case "eps":
            shift, gain = jnp.zeros_like(b), b / total_variance
        case "x0":
            shift, gain = jnp.ones_like(b), a * variances / total_variance
        case "v":
            shift, gain = -b, a * b * (1.0 - variances) / total_variance
        case "score":
            shift, gain = jnp.zeros_like(b), -1.0 / total_variance
    responsibilities = jax.nn.softmax(log_joint(data, y, total_variance), axis=-1)
    prediction = combine(data, responsibilities, shift[:, :, 0], gain * y)
    return prediction.reshape(x_t.shape).astype(x_t.dtype)


def predictor(data: Mixture, schedule: Schedule, *, predicts: Predicts) -> Predict:
    """`(x_t, t) -> prediction`, a perfect network: what samplers and `bits_per_dim` call.

    Build it on the schedule that a network would be trained on. Where a sampler runs on a
    respaced schedule it tells its network the times of the original one, and so it does here.

    Raises:
        ValueError: an unknown `predicts`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ddpm_jax import analytic, samplers, schedules
        >>> schedule, data = schedules.cosine(50), analytic.gaussian(jnp.zeros(6), jnp.eye(6))
        >>> predict = analytic.predictor(data, schedule, predicts="v")
        >>> sampler = samplers.ancestral(schedule, predict, predicts="v", threshold=None)
        >>> times = samplers.time_grid(schedule, 50)
        >>> samplers.sample(sampler, jax.random.key(0), (4, 3, 2, 1), times).x0.shape
        (4, 3, 2, 1)
    """
    check_kind("predicts", predicts)
    return lambda x_t, t: denoise(data, schedule, x_t, t, target=predicts)


def log_density(
    data: Mixture, schedule: Schedule, x_t: Float[Array, "batch *data"], t: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    """log q(x_t) in nats, eq. (1), for t in [0, T); `t = -1` gives that of the data themselves.

    Where a covariance is singular the data have no density: at `t = -1` it is not finite then.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name.
    """
    _check_noised(data, x_t, t)
    joint = log_joint(data, *_noised(data, schedule, x_t, t))
    return jax.nn.logsumexp(joint, axis=-1).astype(x_t.dtype)


def elbo_terms(data: Mixture, schedule: Schedule) -> ElboTerms:
    """Minus the expected ELBO of one Gaussian in nats, with the best denoiser.

        prior    E KL(q(x_{T-1} | x_0) || N(0, I))
        t >= 1   (SNR_{t-1} - SNR_t) / 2 E|x_0 - x0_hat|^2
        decoder  -E log N(x_0; x0_hat, beta_0 I) at t = 0

    where E|x_0 - x0_hat|^2 = sum_i lambda_i b^2 / (a^2 lambda_i + b^2), the variance of x_0 given
    x_t, and the generative steps have the posterior's variance (Kingma et al. 2021, eq. 13,
    https://arxiv.org/abs/2107.00630). What `prior_term` and `vlb_terms` of `ddpm_jax.losses` give
    for draws of the data has these means. The total is never below the `entropy`.

    Raises:
        ValueError: more than one component. What x_t leaves unknown then depends on x_t and its
            mean is no closed form: average the terms of a `predictor` over draws.
    """
    check_one_component(
        data, "the ELBO of a mixture", "losses.vlb_terms with a predictor gives it draw by draw"
    )
    (means,), (variances,) = data.means, data.variances
    dimensions = means.shape[0]
    power = jnp.sum(jnp.square(means)) + jnp.sum(variances)  # E|x_0|^2
    left = schedule.alpha_bar[-1]
    prior = dimensions * kl_to_standard_normal(jnp.zeros_like(left), left) + 0.5 * left * power

    a2, b2 = schedule.alpha_bar, schedule.one_minus_alpha_bar
    unknown = jax.vmap(lambda a2, b2: jnp.sum(variances * b2 / (a2 * variances + b2)))(a2, b2)
    t = jnp.arange(1, schedule.num_steps, dtype=jnp.int32)
    kl = kl_weight(schedule, t, predicts="x0") * unknown[1:]

    beta = schedule.betas[0]
    decoder = 0.5 * (dimensions * jnp.log(2.0 * math.pi * beta) + unknown[0] / beta)
    total = prior + jnp.sum(kl) + decoder
    return ElboTerms(total, prior, jnp.sum(kl), decoder, jnp.append(decoder, kl))


def _noised(
    data: Mixture, schedule: Schedule, x_t: jax.Array, t: jax.Array
) -> tuple[jax.Array, jax.Array]:
    flat = x_t.reshape(x_t.shape[0], data.means.shape[1]).astype(jnp.float32)
    return in_eigenbases(data, flat, schedule.signal(t), schedule.noise_variance(t))


def _check_noised(data: Mixture, x_t: jax.Array, t: jax.Array) -> None:
    check_float("x_t", x_t)
    check_dimensions("x_t has shape", x_t.shape, data)
    check_times("t", t, x_t.shape[0])
