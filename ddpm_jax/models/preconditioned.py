r"""The preconditioning of EDM (Karras et al. 2022, https://arxiv.org/abs/2206.00364).

It scales the input and the output of a network F so that both have variance 1 at every noise level,
for data with the standard deviation :math:`\sigma_d`. For :math:`x = x_0 + \sigma \epsilon`
(equation 7 and table 1)

.. math::

    \hat x_0 = c_{skip} x + c_{out} F(c_{in} x, c_{noise})

    c_{skip} = \frac{\sigma_d^2}{\sigma^2 + \sigma_d^2} \quad
    c_{out} = \frac{\sigma \sigma_d}{\sqrt{\sigma^2 + \sigma_d^2}} \quad
    c_{in} = \frac{1}{\sqrt{\sigma^2 + \sigma_d^2}} \quad
    c_{noise} = \tfrac14 \ln \sigma

On the discrete chain :math:`x_t = a x_0 + b \epsilon`, with :math:`a^2 = \bar\alpha_t` and
:math:`b^2 = 1 - \bar\alpha_t`, the noise level is :math:`\sigma = b / a`, and :math:`x = x_t / a`.
With :math:`s^2 = b^2 + a^2 \sigma_d^2` and :math:`F = F(x_t / s, \ln(b / a) / 4)` the predictions
are

.. math::

    \hat x_0 &= \frac{a \sigma_d^2}{s^2} x_t + \frac{b \sigma_d}{s} F \\
    \hat\epsilon &= \frac{b}{s^2} x_t - \frac{a \sigma_d}{s} F \\
    \hat v &= \frac{a b (1 - \sigma_d^2)}{s^2} x_t - \frac{\sigma_d}{s} F

They agree: the second and third follow from the first by :math:`x_t = a x_0 + b \epsilon`, but are
written without its cancellations.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ddpm_jax.checks import check_kind
from ddpm_jax.forward import Predicts
from ddpm_jax.models.interface import Wrapper, optional_arguments
from ddpm_jax.models.layers import rows, split_like, wide_dtype
from ddpm_jax.schedules import Schedule

__all__ = ["Preconditioned", "coefficients"]


class Preconditioned(Wrapper):
    r"""A network with EDM's preconditioning, a Flax Linen module for the discrete chain.

    With :math:`a^2 = \bar\alpha_t`, :math:`b^2 = 1 - \bar\alpha_t` and
    :math:`s^2 = b^2 + a^2 \sigma_{data}^2`

    .. math::

        \hat x_0 = \frac{a \sigma_{data}^2}{s^2} x_t
        + \frac{b \sigma_{data}}{s} F\big(x_t / s, \tfrac14 \ln(b / a)\big)

    `model.apply(variables, x_t, t)` has the arguments of `ddpm_jax.models.UNet`; `t` are times of
    the chain. The inner network gets float times, c_noise, which are between -2 and 2 for most
    schedules. If it returns a pair, for a learned variance, the second array is returned unchanged.

    Args:
        network: F, any Flax module with the call of `ddpm_jax.models.UNet`.
        schedule: schedule of the chain. It is part of the module, not of its parameters; two
            modules are equal if their schedules are. Times are those that `schedule.network_time`
            returns, so that a chain that is respaced later needs no other module.
        predicts: what the output is converted to: "x0", "eps" or "v".
        sigma_data: standard deviation of the data; 0.5 in EDM, for images in [-1, 1].

    Raises:
        TypeError: `schedule` is not a Schedule.
        ValueError: the schedule leaves no signal at T - 1, where c_noise is infinite; or `predicts`
            is unknown.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ddpm_jax import models, schedules
        >>> network = models.DiT(width=8, depth=1, heads=2)
        >>> model = models.Preconditioned(network, schedules.cosine(100))
        >>> x_t, t = jnp.zeros((2, 8, 8, 3)), jnp.array([0, 99])
        >>> init = jax.jit(model.init_with_output)
        >>> x0_hat, variables = init(jax.random.key(0), x_t, t)
        >>> x0_hat.shape
        (2, 8, 8, 3)

    References:
        Karras et al. 2022, equation 7 and table 1, https://arxiv.org/abs/2206.00364
    """

    schedule: Schedule
    predicts: Predicts = "x0"
    sigma_data: float = 0.5

    @nn.compact
    def __call__(
        self,
        x_t: Float[Array, "batch height width channel"],
        t: Int[Array, " batch"],
        *,
        train: bool = False,
        keys: Key[Array, " batch"] | None = None,
        labels: Int[Array, " batch"] | None = None,
    ) -> (
        Float[Array, "batch height width channel"]
        | tuple[
            Float[Array, "batch height width channel"], Float[Array, "batch height width channel"]
        ]
    ):
        """The prediction at `(x_t, t)`; see the class."""
        wide = wide_dtype(x_t.dtype)
        table = jnp.asarray(coefficients(self.schedule, self.predicts, self.sigma_data), wide)
        of_each = rows(table, split_like(t, x_t))
        skip, out, scale = (of_each[:, column, None, None, None] for column in range(3))
        x = x_t.astype(wide)
        given = optional_arguments(self.network, train=train, keys=keys, labels=labels)
        output = self.network(scale * x, of_each[:, 3], **given)
        output, *others = output if isinstance(output, tuple) else (output,)
        prediction = skip * x + out * output.astype(wide)
        return (prediction, *others) if others else prediction


def coefficients(
    schedule: Schedule, predicts: Predicts, sigma_data: float
) -> Float[np.ndarray, "times 4"]:
    """The factors of x_t and of F, 1 / s, and c_noise, in float64 by network time; see the module.

    NaN at times between those of a schedule that is respaced.

    Raises:
        TypeError, ValueError: see `Preconditioned`.
    """
    if not isinstance(schedule, Schedule):
        raise TypeError(
            f"schedule is a {type(schedule).__name__}; it has to be a Schedule, because"
            " preconditioning needs the same noise level in all pixels"
        )
    if schedule.zero_terminal_snr:
        raise ValueError(
            "schedule leaves no signal at t = T - 1, where preconditioning has an infinite c_noise"
        )
    check_kind("predicts", predicts)
    log_snr, variance = schedule.mean_log_snr(), sigma_data**2
    a, b = (np.exp(-0.5 * np.logaddexp(0.0, sign * log_snr)) for sign in (-1.0, 1.0))
    s = np.sqrt(b**2 + variance * a**2)
    skip, out = {
        "x0": (a * variance / s**2, b * sigma_data / s),
        "eps": (b / s**2, -a * sigma_data / s),
        "v": (a * b * (1.0 - variance) / s**2, -sigma_data / s),
    }[predicts]
    times = np.asarray(jax.device_get(schedule.network_times))
    table = np.full((times.max() + 1, 4), np.nan)
    table[times] = np.stack([skip, out, 1.0 / s, -log_snr / 8.0], axis=1)
    return table
