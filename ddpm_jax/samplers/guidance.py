"""Guidance: functions that make a guided `predict` from another, for any sampler.

`predict(x_t, t)` takes network times, and so does the guided one, whatever times a sampler leaves
out.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.arrays import data_axes, per_example
from ddpm_jax.checks import check_images, check_result, check_scalar
from ddpm_jax.predictions import Predicts, conversion, weights_at
from ddpm_jax.processes.modal import Modal, mix
from ddpm_jax.reverse import check_predicts
from ddpm_jax.samplers.base import Predict

__all__ = ["classifier", "classifier_free"]


def classifier_free(
    conditional: Predict,
    unconditional: Predict,
    *,
    scale: float | Float[Array, ""],
    interval: tuple[int, int] | None = None,
    rescale: float = 0.0,
) -> Predict:
    r"""A prediction that goes further from the unconditional one than the conditional one does.

    .. math::

        \mathrm{guided} = \mathrm{unconditional}
        + \mathrm{scale}\, (\mathrm{conditional} - \mathrm{unconditional})

    (Ho & Salimans 2022, eq. 6, whose w is scale - 1): 0 is unconditional, 1 conditional, and more
    than 1 is guided. Other kinds are eps scaled and shifted alike for both, so it does not matter
    which of them is guided. With `rescale`, phi, it does: the prediction

    .. math::

        \phi\, \frac{\mathrm{std}(\mathrm{conditional})}{\mathrm{std}(\mathrm{guided})}\,
        \mathrm{guided} + (1 - \phi)\, \mathrm{guided}

    with the standard deviation of each example, takes back the contrast that a large scale adds
    (Lin et al. 2024, eq. 15 and 16).

    Args:
        conditional: `(x_t, t) -> prediction`, its condition bound.
        unconditional: the same without a condition. Both predict the same kind.
        scale: how far to go from the unconditional to the conditional prediction. May be traced,
            and is then not checked.
        interval: first and last network time, both included, at which guidance acts; elsewhere the
            prediction is the conditional one (Kynkäänniemi et al. 2024). None is always.
        rescale: phi in [0, 1].

    Returns:
        A `predict`. If `conditional` returns a pair, its second part is passed on as it is.

    Raises:
        ValueError: a scale that is not finite, an empty interval, or `rescale` outside [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax.samplers import guidance
        >>> one, two = (lambda x_t, t: x_t), (lambda x_t, t: 2.0 * x_t)
        >>> guided = guidance.classifier_free(two, one, scale=3.0)
        >>> guided(jnp.ones((1, 2)), jnp.array([5])).tolist()
        [[4.0, 4.0]]

    References:
        - Ho & Salimans 2022, https://arxiv.org/abs/2207.12598
        - Lin et al. 2024, https://arxiv.org/abs/2305.08891
        - Kynkäänniemi et al. 2024, https://arxiv.org/abs/2404.07724
    """
    _check_scale(scale)
    if interval is not None and interval[0] > interval[1]:
        raise ValueError(f"interval is {interval}; its first time has to be the smaller")
    if not 0.0 <= rescale <= 1.0:
        raise ValueError(f"rescale is {rescale}; it has to be in [0, 1]")

    def predict(x_t: Array, t: Array) -> Array | tuple[Array, Array]:
        check_images("x_t", x_t, t=t)
        with_condition, rest = _split(conditional(x_t, t))
        without, _ = _split(unconditional(x_t, t))
        check_result("conditional", with_condition, x_t.shape)
        check_result("unconditional", without, x_t.shape)
        guided = without + scale * (with_condition - without)
        if rescale > 0.0:
            target, std = (
                jnp.std(value, axis=data_axes(value)) for value in (with_condition, guided)
            )
            # An image without contrast has none to take back.
            factor = jnp.where(std > 0.0, target / jnp.where(std > 0.0, std, 1.0), 1.0)
            guided = per_example(1.0 + rescale * (factor - 1.0), guided) * guided
        if interval is not None:
            inside = jnp.where((interval[0] <= t) & (t <= interval[1]), 1.0, 0.0)
            guided = jnp.where(per_example(inside, guided) > 0, guided, with_condition)
        return guided if rest is None else (guided, rest)

    return predict


def classifier(
    process: Modal,
    predict: Predict,
    log_prob: Callable[[Array, Array], Array],
    *,
    predicts: Predicts = "eps",
    scale: float | Float[Array, ""] = 1.0,
) -> Predict:
    r"""The prediction given a condition y, by Bayes' rule and a classifier of noised images.

    The score of x_t given y is that of x_t and g = scale grad log p(y | x_t), the gradient with
    respect to x_t (Dhariwal & Nichol 2021, algorithm 2; Song et al. 2021, eq. 14), so that the
    predictions are

    .. math::

        \hat\epsilon - b\, g, \qquad \hat{x}_0 + \frac{b^2}{a}\, g, \qquad
        \hat{y} + D \frac{b}{a}\, g

    in each mode, with the D of `ddpm_jax.predictions` for any kind. Where no signal is left, a = 0,
    x_t is independent of the condition, and nothing is added.

    Args:
        process: what the times of `predict` are times of: the process of the network, or one
            respaced of it, whose network times alone are then known; others give NaN.
        predict: `(x_t, t) -> prediction`.
        log_prob: `(x_t, t) -> log p(y | x_t)`, `[batch]`, in nats, with its y bound: a classifier
            of noised images. t is the network's time.
        predicts: what `predict` returns, see `ddpm_jax.predictions`.
        scale: 1 is Bayes' rule; more makes x_t more typical of y. May be traced, and is then not
            checked.

    Returns:
        A `predict` of the same kind. If the one given returns a pair, its second part is passed on
        as it is.

    Raises:
        ValueError: a scale that is not finite, an unknown `predicts`, or eps where no signal is
            left at T - 1.
        NoClosedForm: a chain without modes.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import schedules
        >>> from ddpm_jax.samplers import guidance
        >>> guided = guidance.classifier(
        ...     schedules.constant(3, beta=0.75), lambda x_t, t: 0.0 * x_t,
        ...     lambda x_t, t: jnp.sum(x_t, axis=1), predicts="v")  # log p has the slope 1
        >>> v_hat = guided(jnp.ones((1, 2)), jnp.array([0]))
        >>> round(float(v_hat[0, 0]), 3)  # -b / a = -sqrt(3)
        -1.732

    References:
        - Dhariwal & Nichol 2021, https://arxiv.org/abs/2105.05233
        - Song et al. 2021, https://arxiv.org/abs/2011.13456
    """
    check_predicts(process, predicts)
    _check_scale(scale)

    def guided(x_t: Array, t: Array) -> Array | tuple[Array, Array]:
        check_images("x_t", x_t, t=t)
        prediction, rest = _split(predict(x_t, t))
        check_result("predict", prediction, x_t.shape)

        def total(x: Array) -> Array:
            each = log_prob(x, t)
            check_result("log_prob", each, t.shape)  # logits would be summed, too
            return jnp.sum(each)

        slope = jax.grad(total)(x_t)
        index = _index_of_network_time(process, t)
        kinds: tuple[Predicts, Predicts] = ("score", predicts)
        of_score, _, divisor = conversion(*(weights_at(process, index, kind) for kind in kinds))
        silent = divisor == 0.0
        weight = jnp.where(silent, 0.0, of_score / jnp.where(silent, 1.0, divisor))
        prediction = prediction + scale * mix(process, (weight, slope))
        return prediction if rest is None else (prediction, rest)

    return guided


def _index_of_network_time(process: Modal, t: Array) -> Array:
    """The index whose network time is `t`; T, which looks up NaN, if there is none.

    network_times rise, so it is the number of those below.
    """
    times = process.network_times.reshape(1, -1)
    below = jnp.sum(times < t.reshape(-1, 1), axis=1, dtype=jnp.int32)
    there = jnp.any(times == t.reshape(-1, 1), axis=1)
    return jnp.where(there, below, process.num_steps)


def _split(output: Array | tuple[Array, Array]) -> tuple[Array, Array | None]:
    """A prediction, and the interpolation of a network that learned its variance, or None."""
    return output if isinstance(output, tuple) else (output, None)


def _check_scale(scale: float | Array) -> None:
    known = check_scalar("scale", scale)
    if known is not None and not math.isfinite(known):
        raise ValueError(f"scale is {scale}; it has to be finite")
