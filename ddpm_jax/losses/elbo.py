r"""The evidence lower bound: its terms, the weight of a KL term, and losses made from it.

The ELBO of a chain of T steps (Ho et al. 2020, eq. 5), in nats, is a prior term, T - 1 KL terms and
the decoder at t = 0:

.. math::

    -\log p(x_0) \le \mathrm{KL}\big(q(x_{T-1} \mid x_0) \,\|\, p(x_{T-1})\big)
    + \sum_{t=1}^{T-1} \mathrm{E}\, \mathrm{KL}_t - \mathrm{E} \log p(x_0 \mid x_{t=0}) \tag{1}

.. math::

    \mathrm{KL}_t = \mathrm{KL}\big(q(x_{t-1} \mid x_t, x_0) \,\|\, p(x_{t-1} \mid x_t)\big)

Every KL is between Gaussians. With p given the posterior's own variance, it collapses to a weighted
squared error (the KL shortcut; `kl_weight` is the weight):

.. math::

    \mathrm{KL}_t = w_\epsilon |\epsilon - \hat\epsilon|^2 = w_{x_0} |x_0 - \hat{x}_0|^2
    = w_y |y - \hat{y}|^2 \tag{2}

.. math::

    w_\epsilon = \tfrac12 \Big(\frac{\mathrm{SNR}_{t-1}}{\mathrm{SNR}_t} - 1\Big), \qquad
    w_{x_0} = \tfrac12 \big(\mathrm{SNR}_{t-1} - \mathrm{SNR}_t\big), \qquad
    w_y = w_{x_0} \frac{b_t^2}{D_t^2} \tag{3}

(Kingma et al. 2021, eq. 13 and 14, and eq. (4) of `ddpm_jax.predictions` for any kind y); w_v is
w_x0 b_t^2 if variance is preserved. Eq. (2) holds exactly as long as the two variances are equal.
A process of many modes has a weight for each, and KL_t is their sum: a squared error in the norm of
the posterior's covariance, in O(d). A plain squared error in its place is no bound, unless all
weights agree. They do for DDPM, and in eps (not in x0 or v) for noise of one covariance, whose
modes all have the same ratio of SNRs.

With another variance (large, or learned) and d = log of the posterior's variance over p's, the
generic KL of two Gaussians remains, here per mode, of which w ``|error|^2`` is one part:

.. math::

    \mathrm{KL}_t = w\, |\mathrm{error}|^2\, e^d + \tfrac12 \big(e^d - 1 - d\big), \qquad
    d = -u \log \frac{b_t^2}{b_{t-1}^2} \tag{4}

with u = 1 for the large variance, and the network's interpolation for a learned one. The two
variances differ by that factor alone (`reverse`), which near pure noise is 1 to within less than
float32 holds: d is taken from the tables' logarithms, not from the variances.

References:
    - Ho et al. 2020, https://arxiv.org/abs/2006.11239
    - Kingma et al. 2021, https://arxiv.org/abs/2107.00630
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddpm_jax.arrays import data_axes, per_example, split_as, widened
from ddpm_jax.checks import check_choice, check_float, check_images, check_same_shape, check_vector
from ddpm_jax.forward import convert
from ddpm_jax.gaussians import (
    discretized_log_likelihood,
    kl_standardized,
    log_density_diagonal,
)
from ddpm_jax.losses.weighted import simple_loss
from ddpm_jax.predictions import Predicts, error_ratio, weights_at
from ddpm_jax.processes.modal import Modal, check_modal
from ddpm_jax.reverse import (
    Variance,
    check_predicts,
    interpolate,
    variance_range,
)

__all__ = [
    "bits_per_nat",
    "elbo_loss",
    "hybrid_loss",
    "kl_weight",
    "nats_per_bit_dim",
    "prior_term",
    "vlb_terms",
]


def kl_weight(
    process: Modal, t: Int[Array, " batch"], *, predicts: Predicts
) -> Float[Array, "batch *modes"]:
    r"""The weight of the squared error in a KL term, for the step from `t` to `t - 1`.

    .. math::

        w_\epsilon = \tfrac12 \Big(\frac{\mathrm{SNR}_{t-1}}{\mathrm{SNR}_t} - 1\Big), \qquad
        w_{x_0} = \tfrac12 \big(\mathrm{SNR}_{t-1} - \mathrm{SNR}_t\big), \qquad
        w_y = w_{x_0} \frac{b_t^2}{D_t^2}

    Eq. (2) and (3) of `ddpm_jax.losses.elbo`; Kingma et al. 2021, eq. 13 and 14.

    Args:
        process: a schedule, or another process of modes.
        t: times in [1, T), int32 `[batch]`; at t = 0, where the decoder takes the KL's place, the
            weight is inf.
        predicts: of which error it is the weight, see `ddpm_jax.predictions`.

    Returns:
        Nats per squared error, float32 `[batch]`, or `[batch, *modes]` for a process of many modes.

    Raises:
        TypeError, ValueError: `t` of the wrong dtype or shape, an unknown `predicts`, or eps with a
            schedule of zero terminal SNR.
        NoClosedForm: a chain without modes.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import kl_weight, schedules
        >>> weight = kl_weight(schedules.linear_log_snr(16), jnp.array([1, 15]), predicts="eps")
        >>> [round(w, 3) for w in weight.tolist()]  # (e - 1) / 2 at every t
        [0.859, 0.859]

    References:
        Kingma et al. 2021, https://arxiv.org/abs/2107.00630
    """
    check_vector("t", t)
    check_predicts(process, predicts)
    log_ratio = process.log_snr_difference(t, t - 1)  # log(SNR_t / SNR_{t-1}) < 0
    weights = weights_at(process, t, predicts)
    if weights.noise_alone:  # by w_eps, which needs no SNR
        return 0.5 * jnp.expm1(-log_ratio) / weights.beta**2
    weight_x0 = 0.5 * process.snr(t - 1) * -jnp.expm1(log_ratio)
    return weight_x0 / error_ratio(process, t, predicts)


def vlb_terms(
    process: Modal,
    prediction: Float[Array, "batch *data"],
    x0: Float[Array, "batch *data"],
    x_t: Float[Array, "batch *data"],
    t: Int[Array, " batch"],
    *,
    predicts: Predicts,
    levels: int | None,
    variance: Variance = "small",
    interpolation: Float[Array, "batch *data"] | None = None,
) -> Float[Array, " batch"]:
    r"""The term at `t` of minus the ELBO, in nats, summed over the data's dimensions.

    .. math::

        L_t = \mathrm{KL}\big(q(x_{t-1} \mid x_t, x_0) \,\|\, p(x_{t-1} \mid x_t)\big)\ (t \ge 1),
        \qquad L_0 = -\log p(x_0 \mid x_{t=0})

    Eq. (1) to (4) of `ddpm_jax.losses.elbo`. For t >= 1 it is the KL between the true and the
    predicted posterior of x_{t-1}; with the small variance, by the shortcut. For t = 0 the decoder:
    minus the log likelihood of `x0`'s grey levels under a Gaussian at x0_hat, cut into bins (Ho et
    al. 2020, eq. 13 with sigma_1^2 = beta_1, or the learned variance). Published code of DDPM takes
    the posterior's variance of the next step in the place of beta_1, so its term at t = 0 differs.
    Bins are cut pixel by pixel: where the modes are not the pixels, each pixel has the variance
    that the modes give it, and the interpolation at t = 0 is read as one of pixels.

    Args:
        process: a schedule, or another process of modes.
        prediction: the network's output at `(x_t, t)`, shaped as `x0`.
        x0: data, `[batch, ...]`, on the grid of `levels` values in [-1, 1].
        x_t: its noised version, in float32: rounded to bfloat16 it is not the chain's at early
            times, whose noise is smaller, and the bound does not hold.
        t: times in [0, T), int32 `[batch]`.
        predicts: what the output stands for, see `ddpm_jax.predictions`.
        levels: grey levels of the data, at least 2; None for continuous data, whose decoder is the
            density of that Gaussian.
        variance: that of p(x_{t-1} | x_t), see `ddpm_jax.reverse`.
        interpolation: the network's second output, shaped as `x0`, for the learned range only.

    Returns:
        Nats, `[batch]`. Plus the `prior_term`, T times its mean over uniform t is minus the ELBO.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name, an unknown name,
            eps with a schedule of zero terminal SNR, or an interpolation that is missing, or given
            where it is not used.
        NoClosedForm: a chain without modes.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import q_sample, schedules, vlb_terms
        >>> schedule, t = schedules.cosine(10), jnp.array([3, 7])
        >>> x0, eps = jnp.ones((2, 2)), jnp.zeros((2, 2))
        >>> x_t = q_sample(schedule, x0, t, eps)
        >>> eps_hat = eps  # the best prediction has no KL
        >>> vlb_terms(schedule, eps_hat, x0, x_t, t, predicts="eps", levels=256).tolist()
        [0.0, 0.0]

    References:
        Ho et al. 2020, https://arxiv.org/abs/2006.11239
    """
    check_images("x0", x0, t=t)
    check_same_shape("prediction", prediction, "x0", x0)
    check_same_shape("x_t", x_t, "x0", x0)
    check_predicts(process, predicts)
    check_choice("variance", variance, ("small", "large", "learned_range"))
    _check_interpolation(variance, interpolation, x0)
    prediction, x0, x_t = widened(prediction), widened(x0), widened(x_t)
    t = split_as(t, x0)

    # At t = 0 the decoder is chosen, and the KL, which is inf there, would turn gradients NaN.
    step = jnp.maximum(t, 1)
    target = convert(process, x0, x_t, t, source="x0", target=predicts)
    error = process.basis.to_modes(target - prediction)
    weight = kl_weight(process, step, predicts=predicts)
    is_decoder = _fill((t == 0).astype(x0.dtype), x0) > 0.0
    if variance == "small":
        kl = per_example(weight, error) * jnp.square(error)
    else:
        kl = _generic_kl(process, error, weight, step, interpolation, is_decoder)
    kl = jnp.sum(kl, axis=data_axes(x0))
    log_likelihood = _decoder(
        process,
        prediction,
        x0,
        x_t,
        jnp.zeros_like(t),  # at t > 0 the KL is chosen, and x0_hat of pure noise can overflow
        predicts=predicts,
        levels=levels,
        interpolation=interpolation,
        is_decoder=is_decoder,
    )
    decoder = -jnp.sum(log_likelihood, axis=data_axes(x0))
    return jnp.where(t == 0, decoder, kl)


def _generic_kl(
    process: Modal,
    error: Array,
    weight: Array,
    t: Array,
    interpolation: Array | None,
    is_decoder: Array,
) -> Array:
    """KL_t of each mode with a large or a learned variance: the last equations of the module."""
    # A step on which SNR stays adds nothing, and the way back is known: it costs nothing.
    stays = process.log_snr_difference(t, t - 1) == 0.0
    weight, still = jnp.where(stays, 1.0, weight), per_example(stays, error)
    d = -_fill(process.log_noise_difference(t, t - 1), error)
    if interpolation is not None:
        d = widened(interpolation) * d
    # An interpolation may be far outside [0, 1]; where no KL is made of it, it must not overflow,
    # because 0 times inf in its gradient is NaN.
    d = jnp.where(is_decoder | still, 0.0, d)
    scale = per_example(jnp.sqrt(2.0 * weight), error) * jnp.exp(0.5 * d)
    return jnp.where(still, 0.0, kl_standardized(scale * error, d))


def _decoder(
    process: Modal,
    prediction: Array,
    x0: Array,
    x_t: Array,
    t: Array,
    *,
    predicts: Predicts,
    levels: int | None,
    interpolation: Array | None,
    is_decoder: Array,
) -> Array:
    """log p(x_0 | x_t) of each value, for t = 0."""
    x0_hat = convert(process, prediction, x_t, t, source=predicts, target="x0")
    small, large = variance_range(process, t, t - 1)
    if levels is None:  # a density is the same in all coordinates
        x0, x0_hat = process.basis.to_modes(x0), process.basis.to_modes(x0_hat)
        variance, _ = _decoder_variance(small, large, interpolation, is_decoder, x0)
        return log_density_diagonal(x0, x0_hat, variance)
    small, large = process.basis.diagonal(small), process.basis.diagonal(large)
    _, deviation = _decoder_variance(small, large, interpolation, is_decoder, x0)
    return discretized_log_likelihood(x0, x0_hat, deviation, levels=levels)


def _decoder_variance(
    small: Array, large: Array, interpolation: Array | None, is_decoder: Array, like: Array
) -> tuple[Array, Array]:
    """Variance and deviation of the decoder; learned ones are 1 where the KL is chosen."""
    if interpolation is None:
        variance = _fill(large, like)
        return variance, jnp.sqrt(variance)
    log_variance = jnp.where(is_decoder, interpolate(interpolation, small, large), 0.0)
    return jnp.exp(log_variance), jnp.exp(0.5 * log_variance)


def prior_term(process: Modal, x0: Float[Array, "batch *data"]) -> Float[Array, " batch"]:
    r"""The prior term of the ELBO: the KL from the end of the chain to the prior, in nats.

    .. math::

        \mathrm{KL}\big(q(x_{T-1} \mid x_0) \,\|\, p(x_{T-1})\big)

    p is N(0, I), and N(0, Lambda) for noise of another covariance: `process.prior`.

    Args:
        process: a schedule, or another process of modes.
        x0: data, `[batch, ...]`.

    Returns:
        Nats, `[batch]`, summed over the data's dimensions.

    Raises:
        TypeError: `x0` is not floating point.
        NoClosedForm: a chain without modes.
    """
    check_float("x0", x0)
    check_modal("process", process)
    x0 = process.basis.to_modes(widened(x0))
    last = jnp.full(x0.shape[:1], process.num_steps - 1, dtype=jnp.int32)
    prior_variance, missing = process.prior(x0.shape[0])
    mean = per_example(process.signal(last) / jnp.sqrt(prior_variance), x0) * x0
    # log of the variance of q over p's: by what is missing of 1, or where that is most of it by
    # what is left.
    far = missing > 0.5
    left = jnp.where(far, process.noise_variance(last) / prior_variance, 1.0)
    log_variance = jnp.where(far, jnp.log(left), jnp.log1p(-jnp.where(far, 0.0, missing)))
    return jnp.sum(kl_standardized(mean, _fill(log_variance, x0)), axis=data_axes(x0))


def elbo_loss(
    process: Modal,
    prediction: Float[Array, "batch *data"],
    x0: Float[Array, "batch *data"],
    x_t: Float[Array, "batch *data"],
    t: Int[Array, " batch"],
    *,
    predicts: Predicts,
    levels: int | None,
    variance: Variance = "small",
    interpolation: Float[Array, "batch *data"] | None = None,
) -> Float[Array, " batch"]:
    r"""Single-time estimate of minus the ELBO in **bits per dimension**.

    .. math::

        \frac{\mathrm{prior} + T L_t}{d \log 2}

    with d the dimensions of an example; unbiased when each t is uniform on [0, T). L_t is that of
    `vlb_terms`, the prior term that of `prior_term`.

    Args:
        process: a schedule, or another process of modes.
        prediction: the network's output at `(x_t, t)`, shaped as `x0`.
        x0: data, `[batch, ...]`, on the grid of `levels` values in [-1, 1].
        x_t: its noised version, in float32.
        t: times in [0, T), int32 `[batch]`.
        predicts: what the output stands for, see `ddpm_jax.predictions`.
        levels: grey levels of the data, at least 2; None for continuous data.
        variance: that of p(x_{t-1} | x_t), see `ddpm_jax.reverse`.
        interpolation: the network's second output, shaped as `x0`, for the learned range only.

    Returns:
        Bits per dimension, `[batch]`.

    Raises:
        TypeError, ValueError: as `vlb_terms`.
        NoClosedForm: a chain without modes.
    """
    term = vlb_terms(
        process,
        prediction,
        x0,
        x_t,
        t,
        predicts=predicts,
        levels=levels,
        variance=variance,
        interpolation=interpolation,
    )
    return (prior_term(process, x0) + process.num_steps * term) / nats_per_bit_dim(x0)


def hybrid_loss(
    process: Modal,
    prediction: Float[Array, "batch *data"],
    interpolation: Float[Array, "batch *data"],
    x0: Float[Array, "batch *data"],
    x_t: Float[Array, "batch *data"],
    t: Int[Array, " batch"],
    eps: Float[Array, "batch *data"],
    *,
    predicts: Predicts,
    levels: int | None,
    vlb_weight: float = 1e-3,
) -> Float[Array, " batch"]:
    r"""The simple loss plus a small multiple of the bound, which trains the variance.

    .. math::

        L_{\mathrm{simple}} + \lambda\, \frac{T L_t}{d \log 2}

    (Nichol & Dhariwal 2021, eq. 16), with L_t that of `vlb_terms` in nats for the learned range and
    d the dimensions of an example: the bound in bits per dimension, without the prior term, which
    has no parameters. The bound's gradient stops at the prediction: the simple loss alone trains
    the mean, the bound alone the variance (section 3.1 of the paper). For a respaced or short chain
    the weight goes with the sum over T terms, not with each of them.

    Args:
        process: a schedule, or another process of modes.
        prediction: the network's output at `(x_t, t)`, shaped as `x0`.
        interpolation: its second output, see `ddpm_jax.reverse.learned_log_variance`.
        x0: data, `[batch, ...]`, on the grid of `levels` values in [-1, 1].
        x_t: q_sample(process, x0, t, eps).
        t: times in [0, T), int32 `[batch]`.
        eps: the noise, shaped as `x0`.
        predicts: what the output stands for, see `ddpm_jax.predictions`.
        levels: as in `vlb_terms`.
        vlb_weight: lambda of the paper.

    Returns:
        The loss, `[batch]`: a squared error plus weighted bits per dimension.

    Raises:
        TypeError, ValueError: as `simple_loss` and `vlb_terms`.
        NoClosedForm: a chain without modes.

    References:
        Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672
    """
    simple = simple_loss(process, prediction, x0, t, eps, predicts=predicts)
    term = vlb_terms(
        process,
        jax.lax.stop_gradient(prediction),
        x0,
        x_t,
        t,
        predicts=predicts,
        levels=levels,
        variance="learned_range",
        interpolation=interpolation,
    )
    return simple + vlb_weight * process.num_steps * term / nats_per_bit_dim(x0)


def _check_interpolation(variance: Variance, interpolation: Array | None, x0: Array) -> None:
    if variance == "learned_range" and interpolation is None:
        raise ValueError("interpolation is missing; the learned range is made of it")
    if variance != "learned_range" and interpolation is not None:
        raise ValueError(f"interpolation is given, and variance is {variance!r}, which ignores it")
    if interpolation is not None:
        check_same_shape("interpolation", interpolation, "x0", x0)


def _fill(values: Array, like: Array) -> Array:
    return jnp.broadcast_to(per_example(values, like), like.shape)


def nats_per_bit_dim(x0: Array) -> float:
    """Nats in one bit per dimension.

    Raises:
        ValueError: examples without any value.
    """
    dimensions = math.prod(x0.shape[1:])
    if not dimensions:
        raise ValueError(f"x0 has shape {x0.shape}; bits per dimension need at least one dimension")
    return dimensions * math.log(2.0)


def bits_per_nat(x0: Array) -> float:
    """Bits per dimension in one nat, 1 / `nats_per_bit_dim`."""
    return 1.0 / nats_per_bit_dim(x0)
