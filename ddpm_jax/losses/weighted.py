r"""Mean squared errors, and weights that are the same whatever the network predicts.

A squared error of one kind of prediction is one of the data, times a factor that depends on the
levels of signal and noise alone (`ddpm_jax.predictions`, eq. 4):

.. math::

    |y - \hat{y}|^2 = \frac{D_t^2}{b_t^2}\, |x_0 - \hat{x}_0|^2 \tag{1}

So a weighting is one function, the factor w(t) on the squared error of x0, and `error_weight`
converts it for each kind of prediction. Published ones, in these terms:

- `constant`: (D / b)^2, weight one on the error of some kind: SNR for eps, 1 for x0, SNR + 1 for v
  and a chain that preserves variance
- `min_snr`: min(SNR, gamma), Hang et al. 2023
- `p2`: SNR / (k + SNR)^gamma, Choi et al. 2022
- `truncated_snr`: max(SNR, 1), Salimans & Ho 2022

References:
    - Hang et al. 2023, https://arxiv.org/abs/2303.09556
    - Choi et al. 2022, https://arxiv.org/abs/2204.00227
    - Salimans & Ho 2022, https://arxiv.org/abs/2202.00512
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddpm_jax.arrays import data_axes, per_example, widened
from ddpm_jax.checks import check_images, check_result, check_same_shape, check_vector
from ddpm_jax.predictions import Predicts, error_ratio, resolve, weights_at
from ddpm_jax.processes.modal import Modal, mix
from ddpm_jax.reverse import check_predicts

__all__ = [
    "Weighting",
    "constant",
    "error_weight",
    "min_snr",
    "p2",
    "simple_loss",
    "target",
    "truncated_snr",
    "weighted_loss",
]

Weighting = Callable[[Modal, Array], Array]
"""`(process, t) -> w`: the factor on the squared error of x0, shaped as `process.snr(t)`."""


def simple_loss(
    process: Modal,
    prediction: Float[Array, "batch *data"],
    x0: Float[Array, "batch *data"],
    t: Int[Array, " batch"],
    eps: Float[Array, "batch *data"],
    *,
    predicts: Predicts,
) -> Float[Array, " batch"]:
    r"""Mean squared error of the prediction, unitless.

    .. math::

        L_{\mathrm{simple}} = \frac{1}{d} |\mathrm{target} - \mathrm{prediction}|^2

    with d the dimensions of an example (Ho et al. 2020, eq. 14, for eps).

    Args:
        process: a schedule, or another process of modes.
        prediction: the network's output at q_sample(process, x0, t, eps), shaped as `x0`.
        x0: data, `[batch, ...]`.
        t: times in [0, T), int32 `[batch]`.
        eps: the noise that input was made of, shaped as `x0`.
        predicts: what the output stands for, see `ddpm_jax.predictions`; the error is taken in that
            quantity.

    Returns:
        The mean over the data's dimensions, `[batch]`, float32 for narrower images too.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name, or eps with a
            schedule of zero terminal SNR.
        NoClosedForm: a chain without modes.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import schedules, simple_loss
        >>> x0, eps, eps_hat = jnp.ones((1, 2)), jnp.zeros((1, 2)), jnp.full((1, 2), 2.0)
        >>> simple_loss(
        ...     schedules.cosine(10), eps_hat, x0, jnp.array([3]), eps, predicts="eps").tolist()
        [4.0]

    References:
        Ho et al. 2020, https://arxiv.org/abs/2006.11239
    """
    error = _error(process, prediction, x0, t, eps, predicts)
    return jnp.mean(jnp.square(error), axis=data_axes(error))


def weighted_loss(
    process: Modal,
    prediction: Float[Array, "batch *data"],
    x0: Float[Array, "batch *data"],
    t: Int[Array, " batch"],
    eps: Float[Array, "batch *data"],
    *,
    predicts: Predicts,
    weighting: Weighting,
) -> Float[Array, " batch"]:
    r"""w(t) times the mean squared error of x0_hat, whatever the network predicts, unitless.

    .. math::

        \frac{1}{d} \sum_i w_i(t)\, (x_0 - \hat{x}_0)_i^2

    in each mode i, by eq. (1) of `ddpm_jax.losses.weighted`. `simple_loss` is the weighting
    `constant(predicts)`.

    Args:
        process: a schedule, or another process of modes.
        prediction: the network's output at q_sample(process, x0, t, eps), shaped as `x0`.
        x0: data, `[batch, ...]`.
        t: times in [0, T), int32 `[batch]`.
        eps: the noise that input was made of, shaped as `x0`.
        predicts: what the output stands for, see `ddpm_jax.predictions`.
        weighting: w, such as `min_snr` makes it, or a function of your own.

    Returns:
        The mean over the data's dimensions, `[batch]`, float32 for narrower images too.

    Raises:
        TypeError, ValueError: as `simple_loss`, or a weighting that returns another shape.
        NoClosedForm: a chain without modes.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import losses, schedules
        >>> x0, eps, v_hat = jnp.ones((1, 2)), jnp.zeros((1, 2)), jnp.zeros((1, 2))
        >>> loss = losses.weighted_loss(
        ...     schedules.cosine(10), v_hat, x0, jnp.array([3]), eps,
        ...     predicts="v", weighting=losses.min_snr(5.0))
    """
    error = process.basis.to_modes(_error(process, prediction, x0, t, eps, predicts))
    weight = error_weight(process, t, predicts=predicts, weighting=weighting)
    return jnp.mean(per_example(weight, error) * jnp.square(error), axis=data_axes(error))


def target(
    process: Modal,
    x0: Float[Array, "batch *data"],
    t: Int[Array, " batch"],
    eps: Float[Array, "batch *data"],
    *,
    predicts: Predicts,
) -> Float[Array, "batch *data"]:
    r"""What a network should predict at q_sample(process, x0, t, eps).

    .. math::

        y = \alpha_t x_0 + \beta_t \epsilon

    Eq. (1) of `ddpm_jax.predictions`, which has the factors of each kind.

    Args:
        process: a schedule, or another process of modes.
        x0: data, `[batch, ...]`.
        t: times in [0, T), int32 `[batch]`.
        eps: the noise that was added, shaped as `x0`.
        predicts: the kind, see `ddpm_jax.predictions`.

    Returns:
        The target, shaped as `x0`.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name, or eps with a
            schedule of zero terminal SNR.
        NoClosedForm: a chain without modes.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import losses, schedules
        >>> x0, eps = jnp.ones((1, 2)), jnp.zeros((1, 2))
        >>> losses.target(schedules.cosine(10), x0, jnp.array([3]), eps, predicts="eps").tolist()
        [[0.0, 0.0]]
    """
    check_images("x0", x0, t=t)
    check_same_shape("eps", eps, "x0", x0)
    check_predicts(process, predicts)
    alpha, beta, _ = weights_at(process, t, predicts)
    return mix(process, (alpha, x0), (beta, eps))


def error_weight(
    process: Modal, t: Int[Array, " batch"], *, predicts: Predicts, weighting: Weighting
) -> Float[Array, "batch *modes"]:
    r"""The factor on the squared error of what the network predicts, in each mode.

    .. math::

        w_y = w\, \frac{b_t^2}{D_t^2}

    It is w / SNR for eps and w for x0. By eq. (1) of `ddpm_jax.losses.weighted`.

    Args:
        process: a schedule, or another process of modes.
        t: times in [0, T), int32 `[batch]`.
        predicts: what the network predicts, see `ddpm_jax.predictions`.
        weighting: w, the factor on the squared error of x0.

    Returns:
        The factor, unitless, `[batch]`, or `[batch, *modes]` for a process of many modes.

    Raises:
        TypeError, ValueError: `t` of the wrong dtype or shape, an unknown `predicts`, eps with a
            schedule of zero terminal SNR, or a weighting that returns another shape than `[batch]`,
            `[batch, *modes]` for a process of many modes.
        NoClosedForm: a chain without modes.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import losses, schedules
        >>> schedule, weighting = schedules.cosine(10), losses.constant("eps")
        >>> t = jnp.array([3])
        >>> losses.error_weight(schedule, t, predicts="eps", weighting=weighting).tolist()
        [1.0]
    """
    check_vector("t", t)
    check_predicts(process, predicts)
    weight = weighting(process, t)
    check_result("weighting", weight, process.noise_variance(t).shape)
    return weight / error_ratio(process, t, predicts)


def constant(of: Predicts) -> Weighting:
    r"""Weight one on the squared error of `of`.

    .. math::

        w = \frac{D_t^2}{b_t^2}

    on the squared error of x0: SNR for eps, 1 for x0, SNR + 1 for v and a chain that preserves
    variance, and SNR + 1 / sigma_data^2 for edm (lambda of Karras et al. 2022, table 1).

    Args:
        of: the kind, see `ddpm_jax.predictions`.

    Returns:
        The weighting.

    Raises:
        ValueError: an unknown kind.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import losses, schedules
        >>> losses.constant("x0")(schedules.cosine(10), jnp.array([3])).tolist()
        [1.0]

    References:
        Karras et al. 2022, https://arxiv.org/abs/2206.00364
    """
    prediction = resolve("of", of)
    return lambda process, t: error_ratio(process, t, prediction)


def min_snr(gamma: float = 5.0) -> Weighting:
    r"""min(SNR, gamma) on the squared error of x0.

    .. math::

        w(t) = \min(\mathrm{SNR}_t, \gamma)

    (Hang et al. 2023, section 3.4).

    Args:
        gamma: above 0; the paper's is 5.

    Returns:
        The weighting.

    Raises:
        ValueError: `gamma` is not above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import losses, schedules
        >>> losses.min_snr(5.0)(schedules.cosine(10), jnp.array([0])).tolist()
        [5.0]

    References:
        Hang et al. 2023, https://arxiv.org/abs/2303.09556
    """
    _check_positive("gamma", gamma)
    return lambda process, t: jnp.minimum(process.snr(t), gamma)


def p2(k: float = 1.0, gamma: float = 1.0) -> Weighting:
    r"""1 / (k + SNR)^gamma on the squared error of eps.

    .. math::

        w(t) = \frac{\mathrm{SNR}_t}{(k + \mathrm{SNR}_t)^\gamma}

    on that of x0 (Choi et al. 2022, eq. 8).

    Args:
        k: above 0; the paper's is 1.
        gamma: 0 or more; 0 is weight one on eps.

    Returns:
        The weighting.

    Raises:
        ValueError: `k` is not above 0, or `gamma` is below 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import losses, schedules
        >>> losses.p2(k=1.0, gamma=1.0)(schedules.cosine(10), jnp.array([9])).shape
        (1,)

    References:
        Choi et al. 2022, https://arxiv.org/abs/2204.00227
    """
    _check_positive("k", k)
    if not gamma >= 0.0:
        raise ValueError(f"gamma is {gamma}; it has to be 0 or more")

    def weighting(process: Modal, t: Array) -> Array:
        snr = process.snr(t)
        return snr / (k + snr) ** gamma

    return weighting


def truncated_snr(minimum: float = 1.0) -> Weighting:
    r"""max(SNR, minimum) on the squared error of x0.

    .. math::

        w(t) = \max(\mathrm{SNR}_t, \mathrm{minimum})

    (Salimans & Ho 2022, section 4). With the paper's minimum of 1 it is the larger of the errors of
    x0 and eps.

    Args:
        minimum: above 0.

    Returns:
        The weighting.

    Raises:
        ValueError: `minimum` is not above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import losses, schedules
        >>> losses.truncated_snr(1.0)(schedules.cosine(10), jnp.array([9])).tolist()
        [1.0]

    References:
        Salimans & Ho 2022, https://arxiv.org/abs/2202.00512
    """
    _check_positive("minimum", minimum)
    return lambda process, t: jnp.maximum(process.snr(t), minimum)


def _error(
    process: Modal, prediction: Array, x0: Array, t: Array, eps: Array, predicts: Predicts
) -> Array:
    """Target minus prediction, in the quantity that is predicted."""
    check_images("x0", x0, t=t)
    check_same_shape("prediction", prediction, "x0", x0)
    check_same_shape("eps", eps, "x0", x0)
    return target(process, widened(x0), t, widened(eps), predicts=predicts) - widened(prediction)


def _check_positive(name: str, value: float) -> None:
    if not value > 0.0:
        raise ValueError(f"{name} is {value}; it has to be above 0")
