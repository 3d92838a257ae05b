r"""The best denoiser of Gaussian mixtures, and the density of the noised data.

Data distributed as a mixture of Gaussians stay one under the forward process. With
a = sqrt(alpha_bar_t), b = sqrt(1 - alpha_bar_t), and in the eigenbasis of each covariance,
C_k = U_k diag(lambda_k) U_k^T,

.. math::

    x_t \sim \sum_k w_k\, \mathcal{N}\big(a m_k,\ U_k\, \mathrm{diag}(D_k)\, U_k^T\big), \qquad
    D_k = a^2 \lambda_k + b^2 \tag{1}

.. math::

    y_k = U_k^T (x_t - a m_k), \qquad
    r_k = P(\mathrm{component}\ k \mid x_t)\ \mathrm{by\ Bayes'\ rule} \tag{2}

and within a component everything is linear in x_t. The best prediction in mean squared error is the
conditional mean, for the mixture that of eq. (3) weighted with r_k. A target alpha x_0 + beta eps
(`ddpm_jax.predictions`) has

.. math::

    \mathrm{E}[\mathrm{target} \mid x_t, k]
    = \alpha\, m_k + U_k (\mathrm{gain}\cdot y_k), \qquad
    \mathrm{gain} = \frac{\alpha\, a \lambda_k + \beta\, b}{D_k} \tag{3}

The score is the gradient of log q(x_t), of the gain -1 / D_k, and eps = -b score is Tweedie's
formula (Efron 2011). Nothing is divided by a or b, so eq. (3) holds at both ends of the chain, on a
chain that ends in nothing but noise (a = 0) and for data without variance (lambda = 0), where
conversions divide by them.

A process of many modes has an a and a b for each, and its modes are not the eigenbasis of the data:
`by_modes` has what takes the place of eq. (1) to (3) there, and its cost.

References:
    Efron 2011, https://doi.org/10.1198/jasa.2011.tm11181
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddpm_jax.analytic.by_modes import by_component
from ddpm_jax.analytic.mixtures import (
    Mixture,
    check_dimensions,
    combine,
    in_eigenbases,
    log_joint,
)
from ddpm_jax.arrays import einsum, per_example
from ddpm_jax.checks import check_float, check_times
from ddpm_jax.predictions import Predicts, resolve, weights_at
from ddpm_jax.processes.modal import Modal, check_modal
from ddpm_jax.samplers import Predict

__all__ = ["denoise", "log_density", "predictor"]


def denoise(
    data: Mixture,
    process: Modal,
    x_t: Float[Array, "batch *data"],
    t: Int[Array, " batch"],
    *,
    target: Predicts,
) -> Float[Array, "batch *data"]:
    r"""E[target | x_t], the prediction with the least mean squared error.

    Eq. (3) of `ddpm_jax.analytic.denoising`. For eps it is

    .. math::

        \hat\epsilon(x_t) = \sum_k P(k \mid x_t)\, b\, (a^2 C_k + b^2 I)^{-1} (x_t - a m_k)

    The cost is O(d^2) for each example and component with a schedule, and O(d^3) with a process of
    many modes.

    Args:
        data: the distribution of x_0, in d dimensions.
        process: a schedule, or another process of modes.
        x_t: noised data, `[batch, ...]` with d values per example.
        t: times in [0, T), int32 `[batch]`, or -1 for the data themselves if no covariance is
            singular.
        target: the kind of prediction, see `ddpm_jax.predictions`.

    Returns:
        The prediction, with the shape and dtype of `x_t`; computed in float32.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, or an unknown `target`.
        NoClosedForm: a chain without modes.
    """
    _check_noised(data, process, x_t, t)
    kind = resolve("target", target)
    alpha, beta, _ = weights_at(process, t, kind)
    is_score = kind == resolve("target", "score")  # which, alone, exists without noise: b = 0
    if process.signal(t).ndim > 1:
        x = x_t.astype(jnp.float32)
        components = by_component(data, process, x, t)
        shares = jax.nn.softmax(components.log_joint, axis=-1)

        def mean(of_component: jax.Array) -> jax.Array:
            return einsum("bk,bkd->bd", shares, of_component).reshape(x_t.shape)

        if is_score:
            modes = mean(components.score)
        else:
            x0, eps = mean(components.x0), mean(components.eps)
            modes = per_example(alpha, x0) * x0 + per_example(beta, eps) * eps
        return process.basis.to_data(modes).astype(x_t.dtype)
    y, total_variance = _noised(data, process, x_t, t)
    a, b = process.signal(t), process.noise(t)
    of_x0, of_eps = (per_example(value, y) for value in (alpha * a, beta * b))
    gain = (of_x0 * data.variances[None] + of_eps) / total_variance
    if is_score:
        gain = -1.0 / total_variance
    shift = jnp.broadcast_to(alpha, a.shape)[:, None].astype(jnp.float32)
    responsibilities = jax.nn.softmax(log_joint(data, y, total_variance), axis=-1)
    prediction = combine(data, responsibilities, shift, gain * y)
    return prediction.reshape(x_t.shape).astype(x_t.dtype)


def predictor(data: Mixture, process: Modal, *, predicts: Predicts) -> Predict:
    """A perfect network, `(x_t, t) -> prediction`: what samplers and `bits_per_dim` call.

    Give it the process that a network would be trained on, also where a sampler runs on a respaced
    schedule: samplers call their network with the times of the original one.

    Args:
        data: the distribution of x_0, in d dimensions.
        process: a schedule, or another process of modes.
        predicts: the kind of prediction, see `ddpm_jax.predictions`.

    Returns:
        A function of x_t `[batch, ...]` and t int32 `[batch]`: `denoise` with this target.

    Raises:
        ValueError: an unknown `predicts`.
        NoClosedForm: a chain without modes.

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
    check_modal("process", process)
    kind = resolve("predicts", predicts)
    return lambda x_t, t: denoise(data, process, x_t, t, target=kind)


def log_density(
    data: Mixture, process: Modal, x_t: Float[Array, "batch *data"], t: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    r"""log q(x_t) in nats, the density of the noised data.

    .. math::

        \log q(x_t) = \log \sum_k w_k\, \mathcal{N}\big(x_t;\, a m_k,\ a^2 C_k + b^2 I\big)

    Args:
        data: the distribution of x_0, in d dimensions.
        process: a schedule, or another process of modes.
        x_t: noised data, `[batch, ...]` with d values per example.
        t: times in [0, T), int32 `[batch]`; -1 gives the density of the data themselves, which is
            not finite where a covariance is singular.

    Returns:
        Nats, `[batch]`, in the dtype of `x_t`.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name.
        NoClosedForm: a chain without modes.
    """
    _check_noised(data, process, x_t, t)
    if process.signal(t).ndim > 1:
        joint = by_component(data, process, x_t.astype(jnp.float32), t).log_joint
    else:
        joint = log_joint(data, *_noised(data, process, x_t, t))
    return jax.nn.logsumexp(joint, axis=-1).astype(x_t.dtype)


def _noised(
    data: Mixture, process: Modal, x_t: jax.Array, t: jax.Array
) -> tuple[jax.Array, jax.Array]:
    flat = x_t.reshape(x_t.shape[0], data.means.shape[1]).astype(jnp.float32)
    return in_eigenbases(data, flat, process.signal(t), process.noise_variance(t))


def _check_noised(data: Mixture, process: Modal, x_t: jax.Array, t: jax.Array) -> None:
    check_modal("process", process)
    check_float("x_t", x_t)
    check_dimensions("x_t has shape", x_t.shape, data)
    check_times("t", t, x_t.shape[0])
