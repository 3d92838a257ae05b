"""Schedules made from another schedule, on the host, in float64."""

import math
from collections.abc import Sequence

import jax
import numpy as np

from ddpm_jax.checks import check_count
from ddpm_jax.schedules.build import build, check_num_steps
from ddpm_jax.schedules.tables import Schedule, check_preserves_variance, on_host

__all__ = ["respaced", "shifted", "zero_terminal_snr"]


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    r"""Shifts and scales a schedule so that no signal is left at T - 1.

    .. math::

        \sqrt{\bar\alpha_t'} = \big(\sqrt{\bar\alpha_t} - \sqrt{\bar\alpha_{T-1}}\big)
        \frac{\sqrt{\bar\alpha_0}}{\sqrt{\bar\alpha_0} - \sqrt{\bar\alpha_{T-1}}}

    so that the first stays and the last becomes 0 (Lin et al. 2024, algorithm 1). A network for it
    predicts x0 or v: at T - 1 x_t is pure noise, so eps would be x_t itself there and x0_hat = 0 /
    0.

    Args:
        schedule: the schedule to change, one that preserves variance.

    Returns:
        The new schedule; `schedule` itself if it already leaves no signal.

    Raises:
        TypeError: the schedule is traced.
        ValueError: it does not preserve variance, also if it leaves no signal, as rectified flow.

    Example:
        >>> from ddpm_jax import schedules
        >>> float(schedules.zero_terminal_snr(schedules.linear(1000)).alpha_bar[-1])
        0.0

    References:
        Lin et al. 2024, https://arxiv.org/abs/2305.08891
    """
    check_preserves_variance("schedule", schedule)
    log_signal = 0.5 * on_host(schedule.log_alpha_bar_parts)
    first, last = log_signal[0], log_signal[-1]
    if np.isneginf(last):
        return schedule
    # With s = sqrt(alpha_bar): s'_t = (s_t - s_last) s_0 / (s_0 - s_last). Every difference is
    # taken by expm1 of a difference of logs, and 1 - s' is a sum of two that are not negative.
    stretch = -1.0 / math.expm1(last - first)
    fallen = -math.exp(first) * np.expm1(log_signal - first)  # s_0 - s_t
    one_minus_signal = -math.expm1(first) + fallen * stretch
    signal = math.exp(last) * np.expm1(log_signal - last) * stretch
    near_one = one_minus_signal < 0.5
    with np.errstate(divide="ignore"):
        log_alpha_bar = 2.0 * np.where(
            near_one, np.log1p(-np.where(near_one, one_minus_signal, 0.0)), np.log(signal)
        )
    return build(log_alpha_bar, network_times=np.asarray(schedule.network_times))


def shifted(schedule: Schedule, *, resolution: int, reference: int = 64) -> Schedule:
    r"""log SNR lowered for larger images.

    .. math::

        \log \mathrm{SNR}_t' = \log \mathrm{SNR}_t
        + 2 \log \frac{\mathrm{reference}}{\mathrm{resolution}}

    (Hoogeboom et al. 2023, section 3.1). Averaged down to `reference` pixels a side, an image of
    `resolution` pixels then carries the noise that `schedule` gives to an image of `reference`.

    Args:
        schedule: made for images of `reference` pixels a side; one that preserves variance.
        resolution: pixels a side of the images at hand, at least 1.
        reference: pixels a side, at least 1.

    Returns:
        The shifted schedule, of the same network times.

    Raises:
        ValueError: a side below 1, or a schedule that does not preserve variance: those are
            shifted where they are made, by `shift` of `rectified_flow` or the levels of
            `variance_exploding`.
        TypeError: the schedule is traced, or a side is no whole number.

    Example:
        >>> from ddpm_jax import schedules
        >>> schedule = schedules.linear_log_snr(10, 7.0, -8.0)
        >>> round(float(schedules.shifted(schedule, resolution=128).log_snr[0]), 3)  # 7 - 2 log 2
        5.614

    References:
        Hoogeboom et al. 2023, https://arxiv.org/abs/2301.11093
    """
    check_preserves_variance("schedule", schedule)
    for name, side in (("resolution", resolution), ("reference", reference)):
        check_count(name, side)
        if side < 1:
            raise ValueError(f"{name} is {side}; images have at least 1 pixel a side")
    log_snr = on_host(schedule.log_snr_parts) + 2.0 * math.log(reference / resolution)
    return build(
        -np.logaddexp(0.0, -log_snr),
        log_snr=log_snr,
        network_times=np.asarray(schedule.network_times),
    )


def respaced(schedule: Schedule, times: Sequence[int] | np.ndarray | jax.Array) -> Schedule:
    r"""The chain that visits `times` only, with its true betas.

    With tau_i the times,

    .. math::

        \bar\alpha_i' = \bar\alpha_{\tau_i}, \qquad \beta_i' = 1 - \bar\alpha_i' / \bar\alpha_{i-1}'

    (Nichol & Dhariwal 2021, eq. 19). `network_times` has the times that the network was trained
    with. Everything that takes a schedule takes this one: its ELBO is that of the shorter chain,
    for the best denoiser a looser bound. The prior's variance goes with a^2 + b^2 at the last time.

    Args:
        schedule: the chain, itself respaced or not.
        times: rising times in [0, T), at least two, integers; from `samplers.time_grid`, reversed.

    Returns:
        The schedule of the shorter chain.

    Raises:
        TypeError: times that are not integers, or a traced schedule.
        ValueError: not one-dimensional, not rising, or outside [0, T).

    Example:
        >>> from ddpm_jax import schedules
        >>> schedules.respaced(schedules.linear(1000), range(99, 1000, 100)).num_steps
        10

    References:
        Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672
    """
    times = np.asarray(times)
    if times.ndim != 1:
        raise ValueError(f"times has shape {times.shape}; it has to be one-dimensional")
    check_num_steps(len(times))
    if not np.issubdtype(times.dtype, np.integer):
        raise TypeError(f"times has dtype {times.dtype}; times are integers")
    if times.min() < 0 or times.max() >= schedule.num_steps:
        raise ValueError(
            f"times go from {times.min()} to {times.max()}; they lie in [0, {schedule.num_steps})"
        )
    rises = np.diff(times) > 0
    if not rises.all():
        index = int(np.argmin(rises)) + 1
        raise ValueError(
            f"times[{index}] is {times[index]} after {times[index - 1]}; times have to rise"
        )
    log_alpha_bar = on_host(schedule.log_alpha_bar_parts)[times]
    log_snr = on_host(schedule.log_snr_parts)[times]
    network_times = np.asarray(schedule.network_times)[times]
    if schedule.preserves_variance:
        return build(log_alpha_bar, log_snr=log_snr, network_times=network_times)
    log_noise = on_host(schedule.log_noise_parts)
    power = np.exp(on_host(schedule.log_alpha_bar_parts)) + np.exp(log_noise)
    return build(
        log_alpha_bar,
        log_noise=log_noise[times],
        log_snr=log_snr,
        prior_variance=float(schedule.prior_table[0]) * power[times[-1]] / power[-1],
        network_times=network_times,
    )
