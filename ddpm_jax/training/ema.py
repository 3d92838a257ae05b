r"""Averages of the parameters over the course of training.

There are two profiles over time. The usual one decays by a constant factor, and its length has to
be chosen before training. The power function of Karras et al. 2024, section 3.1
(https://arxiv.org/abs/2312.02696), grows with training: with :math:`\theta(\tau)` the parameters
after step :math:`\tau`,

.. math::

    \hat\theta_\gamma(t) &= \frac{\gamma + 1}{t^{\gamma + 1}} \int_0^t \tau^\gamma \theta(\tau)
    \, d\tau \tag{1} \\
    \hat\theta(t) &= \beta(t)\, \hat\theta(t - 1) + (1 - \beta(t))\, \theta(t),
    \quad \beta(t) = (1 - 1/t)^{\gamma + 1} \tag{2} \\
    \sigma_{rel} &= (\gamma + 1)^{1/2} (\gamma + 2)^{-1} (\gamma + 3)^{-1/2} \tag{3}

:math:`\sigma_{rel}` is the standard deviation of the profile in (1) in units of t. (2) is exactly
(1) if :math:`\theta` is constant within each step.

After training, snapshots of a few such averages give the average with any other
:math:`\sigma_{rel}` at any earlier time (their appendix C): a weighted sum of the stored profiles
approximates the wanted one in least squares over time, and the same weights are used for the
snapshots. With :math:`p_i` the profile in (1) that ends at :math:`t_i`, and 0 after it,

.. math::

    \int p_i p_j \, d\tau = \frac{(\gamma_i + 1) (\gamma_j + 1)}{(\gamma_i + \gamma_j + 1)\, m}
    (m / t_i)^{\gamma_i + 1} (m / t_j)^{\gamma_j + 1}, \quad m = \min(t_i, t_j) \tag{4}

Their weights are free. Here they sum to one, as the profiles do, so that the average of a constant
is that constant. Otherwise the constant part of a parameter would be wrong by a factor, which is
the larger error for parameters that have moved little since they were drawn.
"""

import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

__all__ = [
    "decay_at",
    "gamma_of",
    "post_hoc_weights",
    "power_decay_at",
    "reconstruct",
    "sigma_rel_of",
    "update",
]


def decay_at(step: Int[Array, ""], decay: float) -> Float[Array, ""]:
    """min(decay, (1 + step) / (10 + step)), which soon forgets the random start.

    Args:
        step: number of steps done before the one whose parameters are added.
        decay: decay of late averages, in [0, 1).
    """
    step = step.astype(jnp.float32)
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def constant_decay_at(step: Int[Array, ""], decay: float) -> Float[Array, ""]:
    """The same decay from the first step on; after n steps the random start weighs decay^n."""
    return jnp.full_like(step, decay, jnp.float32)


def power_decay_at(step: Int[Array, ""], gamma: float) -> Float[Array, ""]:
    """beta(t) of equation (2) at t = step + 1; it is 0 at first, which forgets the random start.

    Args:
        step: number of steps done before the one whose parameters are added, as in `decay_at`.
        gamma: exponent of the profile, see `gamma_of`.
    """
    t = step.astype(jnp.float32) + 1.0
    return jnp.exp((gamma + 1.0) * jnp.log1p(-1.0 / t))


def update(average: Any, params: Any, decay: Float[Array, ""]) -> Any:
    """decay * average + (1 - decay) * params, leaf by leaf."""
    return jax.tree.map(lambda old, new: old + (1.0 - decay) * (new - old), average, params)


def sigma_rel_of(gamma: float) -> float:
    """Equation (3): the width of the profile with this exponent, relative to training so far.

    Raises:
        ValueError: gamma is negative or not finite.
    """
    _check_gammas(np.asarray(gamma))
    return math.sqrt((gamma + 1.0) / (gamma + 3.0)) / (gamma + 2.0)


def gamma_of(sigma_rel: float) -> float:
    """The exponent of the profile with this width: the largest root of equation (3), a cubic.

    Raises:
        ValueError: sigma_rel is not in (0, 12^(-1/2)]; the bound is the plain mean's, gamma = 0.

    Example:
        >>> from ddpm_jax.training import ema
        >>> round(ema.gamma_of(0.10), 3)
        6.937
    """
    largest = 12.0**-0.5
    if not 0.0 < sigma_rel <= largest:
        raise ValueError(
            f"sigma_rel is {sigma_rel}; it has to be in (0, {largest:.4f}], where the largest is"
            " the width of the mean over all steps"
        )
    # (gamma + 2)^2 (gamma + 3) = (gamma + 1) / sigma_rel^2
    odds = sigma_rel**-2
    gamma = float(np.max(np.roots([1.0, 7.0, 16.0 - odds, 12.0 - odds]).real))
    return max(gamma, 0.0)


def post_hoc_weights(
    times: Float64[np.ndarray, " snapshots"],
    gammas: Float64[np.ndarray, " snapshots"],
    *,
    time: float,
    gamma: float,
) -> Float64[np.ndarray, " snapshots"]:
    """The weights of stored averages for the average with the exponent `gamma` at `time`.

    They minimize the integral of (sum_i w_i p_i - p)^2 over time among weights whose sum is one,
    with p and p_i as in equation (4). A snapshot of the wanted average gets all the weight.

    Args:
        times: steps done when each snapshot was taken, from 1.
        gammas: the exponent of each snapshot's average, 0 or more.
        time: steps done at which the average is wanted, up to the last of `times`.
        gamma: its exponent, 0 or more.

    Raises:
        ValueError: there are no snapshots, `times` and `gammas` differ in length, a value is out of
            range, or `time` is later than all snapshots.
    """
    if times.size == 0 or times.shape != gammas.shape:
        raise ValueError(
            f"times has shape {times.shape} and gammas {gammas.shape}; both need one value for each"
            " snapshot, and there has to be a snapshot"
        )
    _check_gammas(np.append(gammas, gamma))
    if not (times >= 1.0).all():
        raise ValueError(f"times has {times.min()}; times are numbers of steps, from 1")
    if not 1.0 <= time <= times.max():
        raise ValueError(
            f"time is {time}; it has to be in [1, {times.max():g}], not after the last snapshot"
        )
    # In units of each profile's own norm. Snapshots that follow closely are almost parallel:
    # directions that are lost in rounding are left out.
    gram = _products(times[:, None], gammas[:, None], times, gammas)
    scale = 1.0 / np.sqrt(np.diagonal(gram))
    values, vectors = np.linalg.eigh(gram * scale[:, None] * scale)
    large = values > 1e-14 * values[-1]
    values, vectors = values[large], vectors[:, large]
    right = np.stack([_products(times, gammas, time, gamma) * scale, scale], axis=1)
    free, toward_one = (vectors @ (vectors.T @ right / values[:, None]) * scale[:, None]).T
    return free + (1.0 - free.sum()) / toward_one.sum() * toward_one


def reconstruct(snapshots: Iterable[Any], weights: Float64[np.ndarray, " snapshots"]) -> Any:
    """The weighted sum of snapshots, trees of arrays with the same structure.

    Snapshots are read and freed one by one, so that an iterator that reads them from disk needs
    memory for two trees: the sum, and the one that is added. The sum has the dtype and placement of
    the first snapshot. Magnitudes of weights add up to 2 for widths between the stored ones and
    wider ones, and to about 10 for narrower ones, so that little cancels.

    Raises:
        ValueError: the numbers of snapshots and weights differ.
    """
    waiting = iter(snapshots)
    total = None
    for index, weight in enumerate(weights):
        # Not with zip, which holds the last one while it gets the next.
        snapshot = next(waiting, None)
        if snapshot is None:
            raise ValueError(f"there are {index} snapshots; there have to be {len(weights)}")
        total = _start(snapshot, weight) if total is None else _add(total, snapshot, weight)
        del snapshot
    if next(waiting, None) is not None:
        raise ValueError(f"there are more snapshots than the {len(weights)} weights")
    return total


@jax.jit
def _start(snapshot: Any, weight: Float[Array, ""]) -> Any:
    return jax.tree.map(lambda leaf: weight.astype(leaf.dtype) * leaf, snapshot)


@functools.partial(jax.jit, donate_argnums=0)
def _add(total: Any, snapshot: Any, weight: Float[Array, ""]) -> Any:
    return jax.tree.map(lambda old, leaf: old + weight.astype(leaf.dtype) * leaf, total, snapshot)


def _products(
    times: np.ndarray, gammas: np.ndarray, other_times: Any, other_gammas: Any
) -> np.ndarray:
    """Equation (4)."""
    first = np.minimum(times, other_times)
    heights = (gammas + 1.0) * (other_gammas + 1.0) / (gammas + other_gammas + 1.0) / first
    return (
        heights * (first / times) ** (gammas + 1.0) * (first / other_times) ** (other_gammas + 1.0)
    )


def _check_gammas(gammas: np.ndarray) -> None:
    if not ((gammas >= 0.0) & (gammas < np.inf)).all():
        raise ValueError(f"gamma is {gammas}; exponents have to be 0 or more and finite")
