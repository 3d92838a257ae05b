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

On a chain :math:`x_t = a x_0 + b \epsilon` the noise level is :math:`\sigma = b / a`, and
:math:`x = x_t / a`. With :math:`s^2 = b^2 + a^2 \sigma_d^2` and
:math:`F = F(x_t / s, \ln(b / a) / 4)` it is

.. math::

    \hat x_0 = \frac{a \sigma_d^2}{s^2} x_t + \frac{b \sigma_d}{s} F

F itself is a kind of prediction, `ddpm_jax.predictions.edm`, and eq. (3) of `ddpm_jax.predictions`
gives the factors of x_t and F for every other kind. With :math:`\sigma_d = 1` it is
:math:`-v / r` of the input :math:`x_t / r`, with :math:`r^2 = a^2 + b^2`.
"""

import typing
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ddpm_jax.checks import check_choice
from ddpm_jax.models.interface import Wrapper, optional_arguments
from ddpm_jax.models.layers import rows, split_like, wide_dtype
from ddpm_jax.predictions import Predicts, conversion, edm, resolve, weights_of
from ddpm_jax.schedules import Schedule
from ddpm_jax.schedules.tables import on_host

__all__ = ["NoiseInput", "Preconditioned", "coefficients"]

NoiseInput = Literal["log_snr", "time"]
"""What tells the inner network the level of noise: ln(sigma) / 4, or the time of the chain."""


class Preconditioned(Wrapper):
    r"""A network with EDM's preconditioning, a Flax Linen module for the discrete chain.

    With the levels of signal a and noise b, and :math:`s^2 = b^2 + a^2 \sigma_{data}^2`

    .. math::

        \hat x_0 = \frac{a \sigma_{data}^2}{s^2} x_t
        + \frac{b \sigma_{data}}{s} F\big(x_t / s, \tfrac14 \ln(b / a)\big)

    `model.apply(variables, x_t, t)` has the arguments of `ddpm_jax.models.UNet`; `t` are times of
    the chain. The inner network gets float times, c_noise, which are between -2 and 2 for most
    schedules, or the times of the chain. If it returns a pair, for a learned variance, the second
    array is returned unchanged.

    The images that the inner network gets are x_t / s. Fourier features in it
    (`ddpm_jax.models.UNet`) are therefore of x_t / s: where there is little noise, s is sigma_data,
    grey levels are 1 / sigma_data times as far apart as in x_t, and the exponents that separate
    them are log2(1 / sigma_data) lower.

    Args:
        network: F, any Flax module with the call of `ddpm_jax.models.UNet`.
        schedule: schedule of the chain. It is part of the module, not of its parameters; two
            modules are equal if their schedules are. Times are those that `schedule.network_time`
            returns, so that a chain that is respaced later needs no other module.
        predicts: what the output is converted to, see `ddpm_jax.predictions`. With
            `predictions.edm(sigma_data)`, it is F itself.
        sigma_data: standard deviation of the data; 0.5 in EDM, for images in [-1, 1].
        noise_input: "log_snr" gives the inner network c_noise, "time" the time of the chain, which
            exists where no signal is left, too.

    Raises:
        TypeError: `schedule` is not a Schedule.
        ValueError: the schedule leaves no signal at T - 1, where c_noise is infinite, and
            `noise_input` is "log_snr"; or an unknown `predicts` or `noise_input`.

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
    noise_input: NoiseInput = "log_snr"

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
        check_choice("noise_input", self.noise_input, typing.get_args(NoiseInput))
        table = coefficients(self.schedule, self.predicts, self.sigma_data)
        by_log_snr = self.noise_input == "log_snr"
        if by_log_snr and self.schedule.zero_terminal_snr:
            raise ValueError(
                "schedule leaves no signal at t = T - 1, where preconditioning has an infinite"
                " c_noise; noise_input='time' has none"
            )
        of_each = rows(jnp.asarray(table, wide), split_like(t, x_t))
        skip, out, scale = (of_each[:, column, None, None, None] for column in range(3))
        x = x_t.astype(wide)
        given = optional_arguments(self.network, train=train, keys=keys, labels=labels)
        output = self.network(scale * x, of_each[:, 3] if by_log_snr else t, **given)
        output, *others = output if isinstance(output, tuple) else (output,)
        prediction = skip * x + out * output.astype(wide)
        return (prediction, *others) if others else prediction


def coefficients(
    schedule: Schedule, predicts: Predicts, sigma_data: float
) -> Float[np.ndarray, "times 4"]:
    """The factors of x_t and of F, 1 / s, and c_noise, in float64 by network time; see the module.

    NaN at times between those of a schedule that is respaced. c_noise is inf where no signal is
    left.

    Raises:
        TypeError, ValueError: see `Preconditioned`.
    """
    if not isinstance(schedule, Schedule):
        raise TypeError(
            f"schedule is a {type(schedule).__name__}; it has to be a Schedule, because"
            " preconditioning needs the same noise level in all pixels"
        )
    times = np.asarray(jax.device_get(schedule.network_times))
    if not np.issubdtype(times.dtype, np.integer):
        raise TypeError(
            f"schedule has network times of dtype {times.dtype}; they have to be integers, because"
            " the coefficients are looked up by them"
        )
    wanted, network = resolve("predicts", predicts), edm(sigma_data)
    a, b = (
        np.exp(0.5 * on_host(parts))
        for parts in (schedule.log_alpha_bar_parts, schedule.log_noise_parts)
    )
    with jax.ensure_compile_time_eval():  # a kind of one's own may call JAX
        kinds = (weights_of(kind, a, b, a**2 + b**2) for kind in (network, wanted))
        of_f, of_x_t, divisor = conversion(*kinds)
        columns = (of_x_t / divisor, of_f / divisor, 1.0 / np.sqrt(b**2 + (sigma_data * a) ** 2))
    table = np.full((times.max() + 1, 4), np.nan)
    table[times] = np.stack([*columns, -schedule.mean_log_snr() / 8.0], axis=1)
    return table
