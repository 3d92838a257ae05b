r"""Training losses and the terms of the evidence lower bound, one value per example.

The ELBO of a chain of T steps (Ho et al. 2020, eq. 5, https://arxiv.org/abs/2006.11239), in nats:

    -log p(x_0) <= KL(q(x_T|x_0) || p(x_T))                          the prior term
                   + sum_{t=1}^{T-1} KL(q(x_{t-1}|x_t,x_0) || p(x_{t-1}|x_t))
                   - log p(x_0 | x at t = 0)                          the decoder

Every KL is between Gaussians. With p given the posterior's own variance, it collapses to a
weighted squared error (the KL shortcut; `kl_weight` is the weight):

    KL_t = w_eps |eps - eps_hat|^2 = w_x0 |x_0 - x0_hat|^2 = w_v |v - v_hat|^2
    w_eps = (SNR_{t-1} / SNR_t - 1) / 2
    w_x0  = (SNR_{t-1} - SNR_t) / 2
    w_v   = w_x0 (1 - alpha_bar_t)

It holds exactly as long as the two variances are equal and one scalar serves all dimensions. A
learned variance, or noise that is not isotropic, needs the generic `gaussians.kl_diagonal`.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddpm_jax.checks import check_float, check_kind, check_same_shape, check_times
from ddpm_jax.forward import Predicts, convert, per_example
from ddpm_jax.gaussians import discretized_log_likelihood, kl_to_standard_normal
from ddpm_jax.schedules import Schedule

__all__ = ["elbo_loss", "kl_weight", "prior_term", "simple_loss", "vlb_terms"]


def simple_loss(
    schedule: Schedule,
    prediction: Float[Array, "batch *data"],
    x0: Float[Array, "batch *data"],
    t: Int[Array, " batch"],
    eps: Float[Array, "batch *data"],
    *,
    predicts: Predicts,
) -> Float[Array, " batch"]:
    """Mean squared error of the prediction (L_simple of Ho et al. 2020, eq. 14), unitless.

    Args:
        prediction: the network's output at q_sample(schedule, x0, t, eps).
        x0, t, eps: what that input was made of.
        predicts: what the output stands for; the error is taken in that quantity.

    Returns:
        `[batch]`, the mean over the data's dimensions.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name.
    """
    check_float("x0", x0)
    check_same_shape("prediction", prediction, "x0", x0)
    check_same_shape("eps", eps, "x0", x0)
    check_times("t", t, x0.shape[0])
    check_kind("predicts", predicts)
    match predicts:
        case "eps":
            target = eps
        case "x0":
            target = x0
        case "v":
            target = per_example(schedule.signal(t), x0) * eps
            target = target - per_example(schedule.noise(t), x0) * x0
    return jnp.mean(jnp.square(target - prediction), axis=_data_axes(x0))


def kl_weight(
    schedule: Schedule, t: Int[Array, " batch"], *, predicts: Predicts
) -> Float[Array, " batch"]:
    """The w in KL_t = w |error|^2, in nats, for the step from `t` to `t - 1`.

    The equations stand at the head of this module. `t` in [1, T); at t = 0, where the decoder
    takes the KL's place, the weight is inf.

    Raises:
        TypeError, ValueError: `t` of the wrong dtype or shape, or an unknown `predicts`.
    """
    check_times("t", t, t.shape[0] if getattr(t, "ndim", 0) else 0)
    check_kind("predicts", predicts)
    excess = jnp.expm1(-schedule.log_snr_difference(t, t - 1))  # SNR_{t-1} / SNR_t - 1
    match predicts:
        case "eps":
            return 0.5 * excess
        case "x0":
            return 0.5 * excess * jnp.square(schedule.signal(t)) / schedule.noise_variance(t)
        case "v":
            return 0.5 * excess * jnp.square(schedule.signal(t))


def vlb_terms(
    schedule: Schedule,
    prediction: Float[Array, "batch *data"],
    x0: Float[Array, "batch *data"],
    x_t: Float[Array, "batch *data"],
    t: Int[Array, " batch"],
    *,
    predicts: Predicts,
    levels: int,
) -> Float[Array, " batch"]:
    """The ELBO's term at `t`, in nats, summed over the data's dimensions.

    For t >= 1 the KL between the true and the predicted posterior of x_{t-1}, by the shortcut.
    For t = 0 the decoder: minus the log likelihood of `x0`'s grey levels under a Gaussian at
    x0_hat with variance beta_0, cut into bins (Ho et al. 2020, eq. 13 with sigma_1^2 = beta_1).

    Args:
        prediction: the network's output at `(x_t, t)`.
        x0: data on the grid of `levels` values in [-1, 1].
        x_t: its noised version.
        t: times in [0, T).
        predicts: what the output stands for.
        levels: grey levels of the data, at least 2.

    Returns:
        `[batch]`. Plus the `prior_term`, T times its mean over uniform t is the ELBO.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name.
    """
    check_float("x0", x0)
    check_same_shape("prediction", prediction, "x0", x0)
    check_same_shape("x_t", x_t, "x0", x0)
    check_times("t", t, x0.shape[0])
    is_decoder = t == 0

    target = _target(schedule, x0, x_t, t, predicts)
    squared_error = jnp.sum(jnp.square(target - prediction), axis=_data_axes(x0))
    # Where the decoder is meant, any finite weight does; inf would turn its gradient into NaN.
    weight = kl_weight(schedule, jnp.maximum(t, 1), predicts=predicts)

    # Likewise t = 0 for the decoder: x0_hat of pure noise can overflow.
    x0_hat = convert(schedule, prediction, x_t, jnp.zeros_like(t), source=predicts, target="x0")
    deviation = jnp.broadcast_to(jnp.sqrt(schedule.betas[0]).astype(x0.dtype), x0.shape)
    log_likelihood = discretized_log_likelihood(x0, x0_hat, deviation, levels=levels)
    decoder = -jnp.sum(log_likelihood, axis=_data_axes(x0))

    return jnp.where(is_decoder, decoder, weight * squared_error)


def prior_term(schedule: Schedule, x0: Float[Array, "batch *data"]) -> Float[Array, " batch"]:
    """KL(q(x_{T-1} | x_0) || N(0, I)) in nats `[batch]`: what the chain leaves of the data.

    Raises:
        TypeError: `x0` is not floating point.
    """
    check_float("x0", x0)
    last = jnp.full(x0.shape[:1], schedule.num_steps - 1, dtype=jnp.int32)
    mean = per_example(schedule.signal(last), x0) * x0
    alpha_bar = jnp.broadcast_to(schedule.alpha_bar[-1].astype(x0.dtype), x0.shape)
    return jnp.sum(kl_to_standard_normal(mean, alpha_bar), axis=_data_axes(x0))


def elbo_loss(
    schedule: Schedule,
    prediction: Float[Array, "batch *data"],
    x0: Float[Array, "batch *data"],
    x_t: Float[Array, "batch *data"],
    t: Int[Array, " batch"],
    *,
    predicts: Predicts,
    levels: int,
) -> Float[Array, " batch"]:
    """Single-time estimate of minus the ELBO in **bits per dimension**, `[batch]`.

    (prior + T L_t) / (dimensions log 2), unbiased when each t is uniform on [0, T). Arguments and
    errors are those of `vlb_terms`.
    """
    term = vlb_terms(schedule, prediction, x0, x_t, t, predicts=predicts, levels=levels)
    nats = prior_term(schedule, x0) + schedule.num_steps * term
    return nats / (math.prod(x0.shape[1:]) * math.log(2.0))


def _target(
    schedule: Schedule, x0: Array, x_t: Array, t: Array, predicts: Predicts
) -> Float[Array, "batch *data"]:
    return convert(schedule, x0, x_t, t, source="x0", target=predicts)


def _data_axes(x: Array) -> tuple[int, ...]:
    return tuple(range(1, x.ndim))
