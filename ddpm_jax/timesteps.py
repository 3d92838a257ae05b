r"""How the time of each training example is drawn.

The loss of the chain is a sum over its times, and one time of it is an unbiased estimate:

.. math::

    \sum_t L_t = \mathrm{E}_{t \sim p}\big[L_t / p_t\big] \tag{1}

For uniform t that is T L_t. For another p the loss is multiplied by the weight

.. math::

    w_t = \frac{1}{T p_t} \tag{2}

and its mean is still that over uniform t. All draws here are unbiased; their variances differ:

- `uniform`: every example by itself.
- `stratified`: uniform, and a batch spread evenly over the chain.
- `importance`: likewise spread, with the p of least variance,

.. math::

    p_t \propto \sqrt{\mathrm{E}[L_t^2]} \tag{3}

(Nichol & Dhariwal 2021, section 3.3). E[L_t^2] is not known and changes as the network learns. A
`LossHistory` keeps the last losses at each t, and `probabilities` makes p of them. It is a pytree
of two arrays: part of the train state, in its checkpoints, and the same on every device of a mesh.

`lognormal` is a p that is chosen before training: the noise level b / a is log-normal (Karras et
al. 2022). Used without the weights of eq. (2), it trains another loss than that of uniform t.

References:
    - Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672
    - Karras et al. 2022, https://arxiv.org/abs/2206.00364
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from scipy.special import ndtr

from ddpm_jax.arrays import on_every_device
from ddpm_jax.checks import check_count, check_float, check_key, check_times
from ddpm_jax.processes.modal import Modal, check_modal

__all__ = [
    "LossHistory",
    "importance",
    "lognormal",
    "loss_history",
    "probabilities",
    "stratified",
    "uniform",
    "update_history",
]

_LATTICE = 2.0**29
"""Points of the lattice of `importance`, but for rounding: twice that many still are an int32."""


class LossHistory(NamedTuple):
    """The last losses at each t, `length` of them; a pytree. Make one with `loss_history`."""

    losses: Float[Array, "T length"]
    """Rings, float32 `[T, length]`: the next loss at t goes to position counts[t] mod length."""
    counts: Int[Array, " T"]
    """How many losses each t has had, int32 `[T]`, below 2^31."""


def uniform(key: Key[Array, ""], batch: int, num_steps: int) -> Int[Array, " batch"]:
    """Independent times, uniform on [0, num_steps).

    Args:
        key: typed random key.
        batch: number of examples, at least 1.
        num_steps: T, at least 1.

    Returns:
        The times, int32 `[batch]`.

    Raises:
        TypeError, ValueError: `key` is not a typed key, or a count below 1.

    Example:
        >>> import jax
        >>> from ddpm_jax import timesteps
        >>> timesteps.uniform(jax.random.key(0), batch=4, num_steps=1000).shape
        (4,)
    """
    _check(key, batch=batch, num_steps=num_steps)
    return jax.random.randint(key, (batch,), 0, num_steps, dtype=jnp.int32)


def stratified(key: Key[Array, ""], batch: int, num_steps: int) -> Int[Array, " batch"]:
    r"""Times that cover the chain evenly within each batch.

    One offset u is drawn for the whole batch, and example i gets

    .. math::

        t_i = \big\lfloor T \cdot \big((u + i / \mathrm{batch}) \bmod 1\big) \big\rfloor

    (Kingma et al. 2021, appendix I.1). Each t is uniform on [0, num_steps), but the times of a
    batch neither cluster nor leave gaps, so the estimate of the ELBO varies less. The offset is
    drawn on the integer lattice of batch * num_steps points, where this is exact and not only to
    rounding.

    Args:
        key: typed random key.
        batch: number of examples, at least 1.
        num_steps: T, at least 1.

    Returns:
        The times, int32 `[batch]`.

    Raises:
        TypeError, ValueError: `key` is not a typed key, a count below 1, or a lattice of 2^30
            points or more.

    Example:
        >>> import jax
        >>> from ddpm_jax import timesteps
        >>> sorted(timesteps.stratified(jax.random.key(0), batch=4, num_steps=4).tolist())
        [0, 1, 2, 3]

    References:
        Kingma et al. 2021, https://arxiv.org/abs/2107.00630
    """
    _check(key, batch=batch, num_steps=num_steps)
    lattice = batch * num_steps
    if lattice >= 2**30:
        raise ValueError(
            f"batch * num_steps is {lattice}; stratified times count below 2^30 = {2**30}"
        )
    offset = jax.random.randint(key, (), 0, lattice, dtype=jnp.int32)
    places = jnp.arange(batch, dtype=jnp.int32) * num_steps
    return (offset + places) % lattice // batch


def importance(
    key: Key[Array, ""], batch: int, probabilities: Float[Array, " T"]
) -> tuple[Int[Array, " batch"], Float[Array, " batch"]]:
    r"""Times drawn from `probabilities`, and the weights 1 / (T p_t) that keep the mean unbiased.

    .. math::

        \mathrm{E}_{t \sim p}\Big[\frac{L_t}{T p_t}\Big] = \frac{1}{T} \sum_t L_t

    Eq. (1) and (2) of `ddpm_jax.timesteps`; Nichol & Dhariwal 2021, section 3.3. The mean of weight
    * L_t is an unbiased estimate of the mean of L over uniform t, whatever p is, as long as it is
    above 0 where L is not 0. As in `stratified`, one offset is drawn for the whole batch: example i
    gets the time at (offset + i / batch) mod 1 of the way up the cumulated p, so every example's t
    is distributed as p and the batch holds each t batch * p_t times, rounded up or down.

    p is rounded to a lattice of about 2^29 points, each t owning a whole number of them, at least
    one if its p is not 0. The draw and the weights are those of the rounded p, so rounding causes
    no bias.

    Args:
        key: typed random key.
        batch: number of examples, at least 1.
        probabilities: p, `[T]`, not negative; it is divided by its sum. With negative or non-finite
            values the weights are NaN.

    Returns:
        `t`, int32 `[batch]` in [0, T), and the weight of each, float32 `[batch]`. A batch of one is
        one independent draw.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name, or `batch` below 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ddpm_jax import timesteps
        >>> t, weight = timesteps.importance(jax.random.key(0), 4, jnp.array([0.75, 0.25]))
        >>> sorted(t.tolist()), sorted(weight.tolist())
        ([0, 0, 0, 1], [0.6666666865348816, 0.6666666865348816, 0.6666666865348816, 2.0])

    References:
        Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672
    """
    _check(key, batch=batch)
    check_float("probabilities", probabilities)
    if probabilities.ndim != 1:
        raise ValueError(
            f"probabilities has shape {probabilities.shape}; it has to be a vector, one for each t"
        )
    p = on_every_device(probabilities.astype(jnp.float32))
    total = jnp.sum(p)
    valid = jnp.all(p >= 0.0) & (total > 0.0) & jnp.isfinite(total)
    p = jnp.where(valid, p / total, 1.0 / p.size)
    points = jnp.where(p > 0.0, jnp.maximum((p * _LATTICE).astype(jnp.int32), 1), 0)
    ends = jnp.cumsum(points, dtype=jnp.int32)  # of integers: exact, and rising

    lattice = ends[-1]
    offset = jax.random.randint(key, (), 0, lattice, dtype=jnp.int32)
    index = jnp.arange(batch, dtype=jnp.int32)
    # i lattice / batch, whose product would overflow. Rounding moves a place, and biases nothing:
    # the offset makes each of them uniform, wherever it starts from.
    share = (lattice % batch).astype(jnp.float32) / batch
    places = index * (lattice // batch) + (index.astype(jnp.float32) * share).astype(jnp.int32)
    t = jnp.searchsorted(ends, (offset + places) % lattice, side="right").astype(jnp.int32)
    weight = lattice.astype(jnp.float32) / p.size / points[t].astype(jnp.float32)
    return t, jnp.where(valid, weight, jnp.nan)


def loss_history(num_steps: int, length: int = 10) -> LossHistory:
    """The empty history of a chain.

    Args:
        num_steps: T, at least 1.
        length: how many losses it holds for each t, at least 1; the paper's are 10.

    Returns:
        A history of zeros, with counts of 0.

    Raises:
        TypeError, ValueError: a count that is no whole number, or below 1.

    Example:
        >>> from ddpm_jax import timesteps
        >>> timesteps.loss_history(1000).losses.shape
        (1000, 10)
    """
    _check(None, num_steps=num_steps, length=length)
    return LossHistory(jnp.zeros((num_steps, length), jnp.float32), jnp.zeros(num_steps, jnp.int32))


def update_history(
    history: LossHistory, t: Int[Array, " batch"], losses: Float[Array, " batch"]
) -> LossHistory:
    """The history after the examples of a batch, as if they came one after the other.

    A time may occur several times in a batch, even more often than the history is long. Losses that
    are not finite are ignored, because a step that overflowed does not show the size of L_t; so are
    times outside [0, T).

    Args:
        history: of the examples before.
        t: the times that were drawn, int32 `[batch]`.
        losses: L_t of each example, `[batch]`, without the weight.

    Returns:
        A new history, whole on every device; `history` is unchanged.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype or shape, by name.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import timesteps
        >>> history = timesteps.loss_history(3, length=2)
        >>> t, losses = jnp.array([1, 0, 1, 1]), jnp.array([5.0, 6.0, 7.0, 8.0])
        >>> timesteps.update_history(history, t, losses).losses.tolist()
        [[6.0, 0.0], [8.0, 7.0], [0.0, 0.0]]
    """
    _check_history(history)
    check_float("losses", losses)
    if losses.ndim != 1:
        raise ValueError(f"losses has shape {losses.shape}; it has to be a vector, one per example")
    check_times("t", t, losses.shape[0])
    rings, counts = on_every_device(history.losses), on_every_device(history.counts)
    t, losses = on_every_device(t), on_every_device(losses.astype(rings.dtype))
    num_steps, length = rings.shape

    # Sorted by t, and in order for each t; what is ignored goes to a row that is not there.
    known = jnp.isfinite(losses) & (t >= 0) & (t < num_steps)
    row = jnp.where(known, t, num_steps)
    order = jnp.argsort(row, stable=True)
    row, losses = row[order], losses[order]
    rank = jnp.arange(row.size, dtype=jnp.int32) - jnp.searchsorted(row, row).astype(jnp.int32)
    arrived = jnp.zeros_like(counts).at[row].add(1, mode="drop")
    # Of more than `length` losses at one t only the last stay. That leaves each place in the
    # rings at most one loss: nothing depends on the order in which a device writes.
    stays = rank >= arrived.at[row].get(mode="clip") - length
    place = (counts.at[row].get(mode="clip") + rank) % length
    rings = rings.at[jnp.where(stays, row, num_steps), place].set(losses, mode="drop")
    return LossHistory(rings, counts + arrived)


def probabilities(history: LossHistory, *, uniform_share: float = 1e-3) -> Float[Array, " T"]:
    r"""The p of least variance, from the losses that a history has.

    .. math::

        p_t = (1 - u) \frac{\sqrt{\mathrm{E}[L_t^2]}}{\sum_i \sqrt{\mathrm{E}[L_i^2]}} + \frac{u}{T}

    with u the `uniform_share` (Nichol & Dhariwal 2021, eq. 18, has u = 0). E[L_t^2] is the mean
    over the history. p is uniform until the history is full at every t.

    Args:
        history: of the losses that `importance` weights.
        uniform_share: u, in (0, 1]: the share of draws that is uniform. It bounds the weights by 1
            / u, because a short history can underestimate L_t.

    Returns:
        p, float32 `[T]`, which sums to 1.

    Raises:
        TypeError, ValueError: `history` is not a history, or `uniform_share` outside (0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import timesteps
        >>> history = timesteps.LossHistory(jnp.array([[3.0], [1.0]]), jnp.array([1, 1]))
        >>> p = timesteps.probabilities(history, uniform_share=0.2)
        >>> [round(value, 3) for value in p.tolist()]
        [0.7, 0.3]

    References:
        Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672
    """
    _check_history(history)
    if not 0.0 < uniform_share <= 1.0:
        raise ValueError(f"uniform_share is {uniform_share}; it has to be above 0 and at most 1")
    losses, num_steps = history.losses, history.counts.size
    largest = jnp.max(jnp.abs(losses))  # squares of large losses overflow
    scaled = losses / jnp.where(largest > 0.0, largest, 1.0)
    size = jnp.sqrt(jnp.mean(jnp.square(scaled), axis=1))
    full = jnp.all(history.counts >= losses.shape[1]) & (largest > 0.0)
    p = jnp.where(full, size / jnp.where(full, jnp.sum(size), 1.0), 1.0 / num_steps)
    return (1.0 - uniform_share) * p + uniform_share / num_steps


def lognormal(process: Modal, mean: float = -1.2, std: float = 1.2) -> Float[Array, " T"]:
    r"""The probability of each t if the noise level sigma = b / a is log-normal.

    .. math::

        p_t = P\big(m_t < z < m_{t+1}\big), \qquad
        z \sim \mathcal{N}(\mathrm{mean}, \mathrm{std}^2), \qquad
        m_t = \tfrac12 (\ln \sigma_{t-1} + \ln \sigma_t)

    Each t has the interval of ln sigma around it that ends halfway to its neighbours; the tails
    belong to the first and the last t. The defaults are those of EDM (Karras et al. 2022, table 1).
    On rectified flow, where a = 1 - u and b = u, ln sigma is the logit of u: there it is the
    logit-normal law of Stable Diffusion 3 (Esser et al. 2024, section 3.1), with mean 0 and std 1
    in most of its runs. The law depends on the chain through its log SNR, -2 ln sigma, alone.

    Where the last t has no signal, its sigma is infinite. The interval of the t before it is then
    symmetric, and the last t has the tail above.

    Args:
        process: a schedule, or another process of modes, which counts by its mean log SNR.
        mean: of ln sigma, natural logarithm.
        std: standard deviation of ln sigma, above 0.

    Returns:
        p, float32 `[T]`, which sums to 1, the `probabilities` of `importance`. It is computed in
        float64 on the host; the p of a t far from `mean` can underflow to 0, and that t is never
        drawn.

    Raises:
        TypeError: the process is traced.
        ValueError: `mean` is not finite, `std` is not above 0 and finite, or the chain's noise
            levels have no mass.
        NoClosedForm: a chain without modes.

    Example:
        >>> from ddpm_jax import schedules, timesteps
        >>> p = timesteps.lognormal(schedules.cosine(1000))
        >>> p.shape, int(p.argmax())
        ((1000,), 36)

    References:
        - Karras et al. 2022, https://arxiv.org/abs/2206.00364
        - Esser et al. 2024, https://arxiv.org/abs/2403.03206
    """
    check_modal("process", process)
    log_sigma = -0.5 * process.mean_log_snr()
    finite = log_sigma[np.isfinite(log_sigma)]
    span = f"ln sigma of the chain runs from {finite[0]:.3g} to {finite[-1]:.3g}"
    if not math.isfinite(mean):
        raise ValueError(f"mean is {mean}; it has to be finite, and {span}")
    if not 0.0 < std < math.inf:
        raise ValueError(f"std is {std}; it has to be above 0 and finite, and {span}")
    if not np.float32(_mass(finite[:1], finite[-1:], mean, std)) > 0.0:
        raise ValueError(
            f"mean is {mean:g} and std is {std:g}: a law of times with no mass, because {span};"
            " choose a mean in this range, or a larger std"
        )
    ends = np.concatenate([[-np.inf], 0.5 * (log_sigma[:-1] + log_sigma[1:]), [np.inf]])
    if np.isposinf(log_sigma[-1]):
        ends[-2] = 2.0 * log_sigma[-2] - ends[-3]
    p = _mass(ends[:-1], ends[1:], mean, std).astype(np.float32)
    with jax.ensure_compile_time_eval():  # known, also inside of a function that is traced
        return jnp.asarray(p)


def _mass(low: np.ndarray, high: np.ndarray, mean: float, std: float) -> np.ndarray:
    """P(low < z < high) for z ~ N(mean, std^2), in the tail where the two parts do not cancel."""
    low, high = (low - mean) / std, (high - mean) / std
    above = low > 0.0
    low, high = np.where(above, -high, low), np.where(above, -low, high)
    mass: np.ndarray = ndtr(high) - ndtr(low)
    return mass


def _check(key: jax.Array | None, **counts: int) -> None:
    if key is not None:
        check_key("key", key)
    for name, count in counts.items():
        check_count(name, count)
        if count < 1:
            raise ValueError(f"{name} is {count}; it has to be at least 1")


def _check_history(history: LossHistory) -> None:
    check_float("history.losses", history.losses)
    if history.losses.ndim != 2:
        raise ValueError(
            f"history.losses has shape {history.losses.shape}; it has to be [T, length]"
        )
    check_times("history.counts", history.counts, history.losses.shape[0])
