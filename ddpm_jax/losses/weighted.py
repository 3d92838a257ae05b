r"""Mean squared errors, and weights that are the same whatever the network predicts.

A squared error in one of eps, x0 and v is one in the others, times a factor that depends on the
levels of signal a and noise b alone (`ddpm_jax.forward`, eq. 1 and 4; a^2 + b^2 = 1 for a
schedule):

.. math::

    |x_0 - \hat{x}_0|^2 = \frac{|\epsilon - \hat\epsilon|^2}{\mathrm{SNR}_t}
    = \frac{b_t^2}{(a_t^2 + b_t^2)^2} |v - \hat{v}|^2 \tag{1}

So a weighting is one function, the factor w(t) on the squared error of x0, and `error_weight`
converts it for each kind of prediction. Published ones, in these terms:

- `constant`: SNR, 1, or SNR + 1 for a schedule; weight one on the error of eps, of x0 or of v
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
from ddpm_jax.checks import check_images, check_kind, check_result, check_same_shape, check_vector
from ddpm_jax.forward import Predicts
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
        predicts: what the output stands for, "eps", "x0" or "v"; the error is taken in that
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
        predicts: what the output stands for, "eps", "x0" or "v".
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
    """What a network should predict at q_sample(process, x0, t, eps): eps, x0, or v.

    v = a eps - b x0, eq. (4) of `ddpm_jax.forward`.

    Args:
        process: a schedule, or another process of modes.
        x0: data, `[batch, ...]`.
        t: times in [0, T), int32 `[batch]`.
        eps: the noise that was added, shaped as `x0`.
        predicts: which of the three.

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
    match predicts:
        case "eps":
            return eps
        case "x0":
            return x0
        case "v":
            return mix(process, (process.signal(t), eps), (-process.noise(t), x0))


def error_weight(
    process: Modal, t: Int[Array, " batch"], *, predicts: Predicts, weighting: Weighting
) -> Float[Array, "batch *modes"]:
    r"""The factor on the squared error of what the network predicts, in each mode.

    .. math::

        w_\epsilon = \frac{w}{\mathrm{SNR}_t}, \qquad w_{x_0} = w, \qquad
        w_v = w\, \frac{b_t^2}{(a_t^2 + b_t^2)^2}

    By eq. (1) of `ddpm_jax.losses.weighted`.

    Args:
        process: a schedule, or another process of modes.
        t: times in [0, T), int32 `[batch]`.
        predicts: "eps", "x0" or "v".
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
    match predicts:
        case "eps":
            return weight / process.snr(t)
        case "x0":
            return weight
        case "v":
            return weight * process.noise_variance(t) / jnp.square(process.power(t))


def constant(of: Predicts) -> Weighting:
    r"""Weight one on the squared error of `of`.

    .. math::

        w = \mathrm{SNR}_t\ (\epsilon), \qquad w = 1\ (x_0), \qquad
        w = \frac{(a_t^2 + b_t^2)^2}{b_t^2}\ (v)

    on the squared error of x0; for v it is SNR + 1 for a schedule.

    Args:
        of: "eps", "x0" or "v".

    Returns:
        The weighting.

    Raises:
        ValueError: an unknown kind.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import losses, schedules
        >>> losses.constant("x0")(schedules.cosine(10), jnp.array([3])).tolist()
        [1.0]
    """
    check_kind("of", of)

    def weighting(process: Modal, t: Array) -> Array:
        match of:
            case "eps":
                return process.snr(t)
            case "x0":
                return jnp.ones_like(process.snr(t))
            case "v":
                return jnp.square(process.power(t)) / process.noise_variance(t)

    return weighting


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
