r"""Progressive distillation: the target of a student whose one step does two of its teacher's.

A deterministic step of DDIM goes from t to s along a constant x0_hat (Song et al. 2021, eq. 12):

.. math::

    x_s = \frac{b_s}{b_t} x_t + a_s \big(1 - e^{-h_{ts}}\big)\, \hat{x}_0, \qquad
    e^{-h_{ts}} = \sqrt{\mathrm{SNR}_t / \mathrm{SNR}_s} \tag{1}

The teacher takes two, from t over m to s, with its estimates :math:`\hat{x}_0(x_t)` and
:math:`\hat{x}_0(x_m)`. The student is to arrive at the same x_s in one. So its estimate has to be
(Salimans & Ho 2022, algorithm 2)

.. math::

    \tilde{x}_0 = \frac{x_s - (b_s / b_t)\, x_t}{a_s - (b_s / b_t)\, a_t} \tag{2}

Between neighbouring times both differences of eq. (2) cancel. With eq. (1) put in twice, x_t falls
out and a mean of the two estimates is left, whose weights come from differences of log SNR:

.. math::

    \tilde{x}_0 = (1 - w)\, \hat{x}_0(x_t) + w\, \hat{x}_0(x_m), \qquad
    w = \frac{1 - e^{-h_{ms}}}{1 - e^{-h_{ts}}} \tag{3}

At s = -1, onto the data, h is infinite and w = 1: the target is the teacher's data.

References:
    - Salimans & Ho 2022, https://arxiv.org/abs/2202.00512
    - Song et al. 2021, https://arxiv.org/abs/2010.02502
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddpm_jax.arrays import per_example
from ddpm_jax.checks import check_images, check_result
from ddpm_jax.forward import convert, q_sample
from ddpm_jax.predictions import Predicts
from ddpm_jax.processes.modal import Modal, mix
from ddpm_jax.reverse import check_predicts

__all__ = ["distillation_target"]


def distillation_target(
    process: Modal,
    predict: Callable[[Float[Array, "batch *data"], Int[Array, " batch"]], Array],
    x_t: Float[Array, "batch *data"],
    t: Int[Array, " batch"],
    m: Int[Array, " batch"],
    s: Int[Array, " batch"],
    *,
    predicts: Predicts,
) -> Float[Array, "batch *data"]:
    r"""The x0_hat with which one step of DDIM goes where two of the teacher's go.

    .. math::

        \tilde{x}_0 = \frac{x_s - (b_s / b_t)\, x_t}{a_s - (b_s / b_t)\, a_t}

    with the teacher's x_s, in each mode, computed as a mean of the teacher's two estimates: eq. (3)
    of `ddpm_jax.losses.distillation`.

    Any loss trains the student for it. Give the loss the target in the place of `x0`, and in the
    place of `eps` the noise that agrees with it, `convert(process, target, x_t, t, source="x0",
    target="eps")`; the paper's loss is then `weighted_loss` with `truncated_snr()`. A student that
    has learned its steps is the teacher of the next, with every second time. A student
    must not predict "eps" or "score": few steps begin where x_t is almost noise, and these hardly
    determine the data there.

    Args:
        process: a schedule, or another process of modes.
        predict: the teacher, `(x_t, t) -> prediction`, with its parameters bound. It is called
            twice, with `process.network_time` of `t` and of `m`.
        x_t: noised data, `[batch, ...]`.
        t: times in [0, T), int32 `[batch]`.
        m: the times between, s < m < t, int32 `[batch]`.
        s: earlier times, -1 <= s, int32 `[batch]`.
        predicts: what the teacher returns, see `ddpm_jax.predictions`.

    Returns:
        The target, shaped as `x_t`, in its dtype. NaN where the times do not fall. In a mode whose
        SNR is the same at t and s, where the step depends on no x0_hat, it is that at t.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name, a prediction of
            another shape, or eps with a schedule of zero terminal SNR.
        NoClosedForm: a chain without modes.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import losses, schedules
        >>> schedule, x_t, t = schedules.cosine(1000), jnp.ones((2, 8, 8, 1)), jnp.array([999, 99])
        >>> def teacher(x_t, t):  # a network, its parameters bound
        ...     return 0.0 * x_t
        >>> target = losses.distillation_target(
        ...     schedule, teacher, x_t, t, t - 50, t - 100, predicts="v")
        >>> target.shape
        (2, 8, 8, 1)

    References:
        Salimans & Ho 2022, https://arxiv.org/abs/2202.00512
    """
    check_images("x_t", x_t, t=t, m=m, s=s)
    check_predicts(process, predicts)

    def estimates(x: Array, time: Array) -> tuple[Array, Array]:
        prediction = predict(x, process.network_time(time))
        check_result("predict", prediction, x.shape)
        x0_hat, eps_hat = (
            convert(process, prediction, x, time, source=predicts, target=target)
            for target in ("x0", "eps")
        )
        return x0_hat, eps_hat

    x0_at_t, eps_at_t = estimates(x_t, t)
    x_m = q_sample(process, x0_at_t, m, eps_at_t)  # the step of DDIM
    x0_at_m, _ = estimates(x_m, m)
    second = jnp.expm1(0.5 * process.log_snr_difference(m, s))
    whole = jnp.expm1(0.5 * process.log_snr_difference(t, s))
    share = second / jnp.where(whole == 0.0, 1.0, whole)
    share = jnp.where(per_example((s < m) & (m < t), share), share, jnp.nan)
    return mix(process, (1.0 - share, x0_at_t), (share, x0_at_m))
