r"""A noise schedule for each pixel, which may depend on a condition of each example.

.. math::

    a^2 = \sigma(\log \mathrm{SNR}), \qquad b^2 = \sigma(-\log \mathrm{SNR}) \cdot \mathrm{variance}
    \tag{1}

per pixel and time, with sigma the logistic sigmoid. With a log SNR that a network makes of a
condition this is MuLAN (Sahoo et al. 2024); with a schedule's log SNR and a variance made of the
condition it is PriorGrad (Lee et al. 2022), whose data are `x0 - mean` of the condition.

References:
    - Sahoo et al. 2024, https://arxiv.org/abs/2312.13236
    - Lee et al. 2022, https://arxiv.org/abs/2106.06406
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import ArrayLike

from ddpm_jax import bases
from ddpm_jax.arrays import widened
from ddpm_jax.checks import check_float
from ddpm_jax.processes.spectral import Spectral, build, check_values, common_shape
from ddpm_jax.schedules.build import check_num_steps

__all__ = ["per_pixel"]

Numbers = float | ArrayLike
Table = Numbers | Callable[[Array], Array]


def per_pixel(log_snr: Table, *, variance: Table = 1.0, condition: Array | None = None) -> Spectral:
    r"""A process with a log SNR, and noise of a variance, for each pixel.

    .. math::

        a^2 = \sigma(\log \mathrm{SNR}), \qquad
        b^2 = \sigma(-\log \mathrm{SNR}) \cdot \mathrm{variance}

    with sigma the logistic sigmoid (Sahoo et al. 2024; Lee et al. 2022).

    Without a condition, tables are read in float64 on the host. With one, the process belongs to
    the batch that it is a condition of: make it where the batch is, inside the loss, so that
    gradients reach what made the tables. Its times `[batch]` are those of its examples in order.
    Tables are then what JAX computed, of float32's precision, and if they are traced their values
    cannot be checked: where log SNR rises, everything made of that step is NaN.

    Args:
        log_snr: `[T, *data]`, falling in T, or a function `condition -> [examples, T, *data]`. Axes
            of the data may be 1, where pixels share.
        variance: of the noise beside the schedule's, `[*data]` or a function
            `condition -> [examples, *data]`. It is that of the prior, too.
        condition: `[examples, ...]`, the argument of the functions.

    Returns:
        The process, whose modes are the pixels.

    Raises:
        TypeError: a condition that is not floating point.
        ValueError: a function without its condition, a condition without a function of it, shapes
            that do not fit, a log SNR that rises, or a variance that is not above 0.

    Example:
        >>> import numpy as np
        >>> from ddpm_jax import processes
        >>> falling = np.linspace(7.0, -8.0, 50)[:, None] + np.array([0.0, 1.0, 2.0])
        >>> processes.per_pixel(falling).num_steps
        50

    References:
        - Sahoo et al. 2024, https://arxiv.org/abs/2312.13236
        - Lee et al. 2022, https://arxiv.org/abs/2106.06406
    """
    if condition is None:
        if callable(log_snr) or callable(variance):
            name = "log_snr" if callable(log_snr) else "variance"
            raise ValueError(
                f"condition is missing; {name} is a function of it (bind it with"
                " per_pixel(..., condition=...) where the batch is)"
            )
        return _fixed(_log_snr(log_snr), variance)
    if not (callable(log_snr) or callable(variance)):
        raise ValueError("condition is given, and neither log_snr nor variance is a function of it")
    check_float("condition", condition)
    examples = condition.shape[0]
    if callable(log_snr):
        snr_table = log_snr(condition)
        if snr_table.ndim < 3 or snr_table.shape[0] != examples:
            raise ValueError(
                f"log_snr returned the shape {snr_table.shape}; it has to return"
                f" ({examples}, T, *data)"
            )
    else:
        snr_table = jnp.asarray(_log_snr(log_snr).astype(np.float32))[None]
    rank = snr_table.ndim - 2
    if callable(variance):
        spread = variance(condition)
        if spread.ndim != rank + 1 or spread.shape[0] != examples:
            raise ValueError(
                f"variance returned the shape {spread.shape}; it has to return ({examples}, *data)"
                f" with as many axes as the data of log_snr, {rank}"
            )
    else:
        spread = jnp.asarray(_variance(variance, rank).astype(np.float32))[None]
    _check_fits(spread.shape[1:], snr_table.shape[2:])
    return _conditioned(snr_table, spread, examples)


def _log_snr(table: Numbers) -> np.ndarray:
    log_snr = np.asarray(table, np.float64)
    if log_snr.ndim < 2:
        raise ValueError(f"log_snr has shape {log_snr.shape}; it has to be [T, *data]")
    if np.isnan(log_snr).any():
        raise ValueError("log_snr is NaN somewhere")
    return log_snr


def _variance(table: Numbers, rank: int) -> np.ndarray:
    variance = np.asarray(table, np.float64)
    if variance.ndim not in (0, rank):
        raise ValueError(
            f"variance has shape {variance.shape}; it has to be one number or [*data], with as many"
            f" axes as the data of log_snr, {rank}"
        )
    if not ((variance > 0.0).all() and np.isfinite(variance).all()):
        raise ValueError("variance is not above 0 and finite everywhere")
    return variance.reshape(variance.shape or (1,) * rank)


def _check_fits(variance: tuple[int, ...], data: tuple[int, ...]) -> None:
    common_shape(
        f"variance has the shape {variance}, and the data of log_snr {data}; axes have to be as"
        " long as each other or 1",
        *(variance, data),
    )


def _fixed(log_snr: np.ndarray, variance: Numbers) -> Spectral:
    spread = _variance(variance, log_snr.ndim - 1)
    _check_fits(spread.shape, log_snr.shape[1:])
    return build(
        -np.logaddexp(0.0, -log_snr),
        -np.logaddexp(0.0, log_snr) + np.log(spread)[None],
        log_prior_variance=np.log(spread),
    )


def _conditioned(log_snr: Array, variance: Array, examples: int) -> Spectral:
    num_steps = log_snr.shape[1]
    check_num_steps(num_steps)
    # A network may compute in bfloat16, in which neighbouring times are equal.
    log_snr, variance = widened(log_snr), widened(variance)
    log_signal = -jax.nn.softplus(-log_snr)
    log_noise = -jax.nn.softplus(log_snr) + jnp.log(variance)[:, None]
    shape = (examples, num_steps, *log_noise.shape[2:])
    log_signal, log_noise = jnp.broadcast_to(log_signal, shape), jnp.broadcast_to(log_noise, shape)
    zero_terminal_snr = False
    if not isinstance(log_noise, jax.core.Tracer):
        tables = (np.asarray(table, np.float64) for table in (log_signal, log_noise))
        check_values(*(np.moveaxis(table, 0, -1) for table in tables))
        zero_terminal_snr = bool(np.isneginf(log_signal).any())
    log_prior = jnp.broadcast_to(jnp.log(variance), (examples, *shape[2:]))

    def parts(table: Array) -> Array:
        return jnp.stack([table, jnp.zeros_like(table)])

    return Spectral(
        log_signal_variance=parts(log_signal),
        log_noise_variance=parts(log_noise),
        log_prior_variance=log_prior,
        network_times=jnp.arange(num_steps, dtype=jnp.int32),
        basis=bases.identity(),
        zero_terminal_snr=zero_terminal_snr,
        conditioned=True,
    )
