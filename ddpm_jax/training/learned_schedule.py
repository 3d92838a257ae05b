r"""A noise schedule that is trained with the network: parameters, gradient, metrics.

The parameters are a collection of their own among a network's variables, `COLLECTION`, so that the
optimizer, averages and checkpoints treat them as they treat the others. They are offsets from the
schedule that training begins with, and begin at 0.

The ends of log SNR are trained to minimize the bound. The path between them hardly changes the
bound (Kingma et al. 2021, section 5.2), so it is trained to minimize the second moment of the loss
(appendix I):

.. math::

    \nabla\, \mathrm{E}\big[(w L)^2\big] = \mathrm{E}\big[2\, w L\, \nabla (w L)\big] \tag{1}

with w the weight of an example's time. The backward pass has the gradient of each w L. If each
example has its own copy of the schedule's tables, (1) multiplies the gradient of that copy by
2 w L, and no second pass is needed. So the losses are written as a function of two arguments, the
shared variables (with the ends) and the copies of the tables, with a derivative of their own.

References:
    Kingma et al. 2021, https://arxiv.org/abs/2107.00630
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ddpm_jax.arrays import is_traced
from ddpm_jax.checks import check_choice
from ddpm_jax.schedules import Endpoints, Monotone, Schedule, from_monotone, monotone
from ddpm_jax.training.objective import Drawn, Losses

__all__ = [
    "COLLECTION",
    "LearnedSchedule",
    "learned_log_snr",
    "learned_schedule_losses",
    "with_schedule_apart",
]

COLLECTION = "schedule"
"""Name of the collection of a learned schedule among the variables of a network."""

_ENDS = ("log_snr_max", "log_range")
_LIMIT = 20.0
"""Largest log SNR without a warning, where b is e^-10, and minus the smallest."""
_LARGEST_STEP, _TIMES_EVEN = 0.25, 5.0
"""A step collapses if it has more than this share of the range, and so many times an even share."""


class LearnedSchedule(NamedTuple):
    """A schedule with parameters of its own, as functions of its collection of parameters."""

    initial: Callable[[], dict[str, Array]]
    """Returns the collection before the first step."""
    schedule: Callable[[Any], Schedule]
    """`collection -> schedule`; of traced parameters a traced one, otherwise exact tables."""
    by_bound: frozenset[str]
    """Names of the parameters that descend the loss; the others descend its second moment."""
    metrics: Callable[[Any], dict[str, Array]]
    """`collection -> scalars by name`, which a run logs."""
    warnings: Callable[[dict[str, float]], dict[str, str]]
    """`metrics -> sentences`, by what is wrong, about a schedule that has become useless."""


def learned_log_snr(
    num_steps: int,
    log_snr_max: float,
    log_snr_min: float,
    *,
    width: int,
    endpoints: Literal["fixed", "learned"],
) -> LearnedSchedule:
    """The monotone log SNR of `ddpm_jax.schedules.learned`, which begins almost linear.

    Learned ends are an offset of log SNR's maximum, and one of the logarithm of its range, so that
    log SNR always falls.

    Args:
        num_steps: T.
        log_snr_max: log SNR at t = 0, before the first step.
        log_snr_min: log SNR at t = T - 1, before the first step.
        width: number of sigmoids.
        endpoints: whether the ends stay or are learned.

    Returns:
        The functions.

    Raises:
        TypeError, ValueError: a width below 8, ends that are not finite and falling, T below 2, or
            another word for `endpoints`.
    """
    check_choice("endpoints", endpoints, ("fixed", "learned"))
    begin, ends = monotone(width), Endpoints(log_snr_max, log_snr_min)
    from_monotone(begin, ends, num_steps)  # refuses what makes no schedule
    shapes = {name: leaf.shape for name, leaf in begin._asdict().items()}
    if endpoints == "learned":
        shapes |= dict.fromkeys(_ENDS, ())

    def initial() -> dict[str, Array]:
        return {name: jnp.zeros(shape, jnp.float32) for name, shape in shapes.items()}

    def ends_of(offsets: Any) -> Endpoints:
        if endpoints == "fixed":
            return ends
        xp: Any = jnp if is_traced(offsets) else np
        high = log_snr_max + offsets["log_snr_max"]
        return Endpoints(high, high - (log_snr_max - log_snr_min) * xp.exp(offsets["log_range"]))

    def schedule(collection: Any) -> Schedule:
        offsets = collection
        if not is_traced(collection):
            offsets = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), collection)
        params = Monotone(
            *(
                value.astype(offsets[name].dtype) + offsets[name]
                for name, value in begin._asdict().items()
            )
        )
        return from_monotone(
            params, ends_of(offsets), num_steps, network_positions=(ends, num_steps)
        )

    def metrics(collection: Any) -> dict[str, Array]:
        log_snr = schedule(collection).log_snr
        return {
            "log_snr_max": log_snr[0],
            "log_snr_min": log_snr[-1],
            "largest_log_snr_step": jnp.max(-jnp.diff(log_snr)) / (log_snr[0] - log_snr[-1]),
        }

    return LearnedSchedule(
        initial=initial,
        schedule=schedule,
        by_bound=frozenset(_ENDS),
        metrics=metrics,
        warnings=functools.partial(_warnings, num_steps=num_steps),
    )


def learned_schedule_losses(
    losses_of: Callable[[Schedule], Losses], learned: LearnedSchedule
) -> Losses:
    """The losses of a network and its schedule, with the gradient of eq. (1) for what lies between.

    Args:
        losses_of: makes the losses of a network, by `training.make_losses`, from the process.
        learned: the schedule, whose collection the parameters have as `COLLECTION`.

    Returns:
        A function `(params, batch, drawn) -> losses [batch]`. Its derivative is that of the losses,
        except for parameters of the schedule that are not in `learned.by_bound`.
    """

    def losses(params: Any, batch: Any, drawn: Drawn) -> Float[Array, " batch"]:
        variables = {name: values for name, values in params.items() if name != COLLECTION}
        by_bound, by_moment = (
            learned.schedule(
                {
                    name: leaf if (name in learned.by_bound) == wanted else _stopped(leaf)
                    for name, leaf in params[COLLECTION].items()
                }
            )
            for wanted in (True, False)
        )
        # Zeros, whose gradient is that of what lies between; a row for each example.
        count = drawn.t.shape[0]
        offsets = [
            jnp.broadcast_to(table - _stopped(table), (count, *table.shape))
            for table in jax.tree.leaves(by_moment)
        ]

        # As lists: a schedule checks the shapes of its tables, and these are those of many.
        tables, structure = jax.tree.flatten(by_bound)

        def of_tables(shared: tuple[Any, list[Array]], offsets: list[Array]) -> Array:
            variables, tables = shared

            def of_one(offsets: list[Array], example: Any, drawn: Drawn) -> Array:
                moved = [table + offset for table, offset in zip(tables, offsets, strict=True)]
                own = losses_of(jax.tree.unflatten(structure, moved))
                one = jax.tree.map(lambda leaf: leaf[None], (example, drawn))
                return own(variables, *one)[0]

            return jax.vmap(of_one)(offsets, batch, drawn)

        return _by_second_moment(of_tables, drawn.weight)((variables, tables), offsets)

    return losses


def with_schedule_apart(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer, used once for the network and once for its schedule.

    A clip of the gradient's norm then does not weigh the one against the other, whose gradients
    have different units: those of the loss, and of its square.

    Args:
        optimizer: of all parameters.

    Returns:
        The optimizer of variables that have the collection `COLLECTION`.
    """

    def kinds(params: Any) -> dict[str, str]:
        return {name: COLLECTION if name == COLLECTION else "network" for name in params}

    return optax.partition({COLLECTION: optimizer, "network": optimizer}, kinds)


def _by_second_moment(
    losses: Callable[[Any, Any], Array], weight: Float[Array, " batch"]
) -> Callable[[Any, Any], Array]:
    """`losses(shared, own)`, with the gradient of each example's row of `own` times 2 w L."""

    def forward(shared: Any, own: Any) -> tuple[Array, Any]:
        values, pull_back = jax.vjp(losses, shared, own)
        return values, (pull_back, 2.0 * weight * values)

    def backward(saved: Any, cotangent: Array) -> tuple[Any, Any]:
        pull_back, factor = saved
        shared, own = pull_back(cotangent)
        return shared, jax.tree.map(lambda leaf: jax.vmap(jnp.multiply)(factor, leaf), own)

    function = jax.custom_vjp(losses)
    function.defvjp(forward, backward)
    return function


def _warnings(metrics: dict[str, float], *, num_steps: int) -> dict[str, str]:
    high, low = metrics["log_snr_max"], metrics["log_snr_min"]
    largest, even = metrics["largest_log_snr_step"], 1.0 / (num_steps - 1)
    sentences = {}
    if largest > max(_LARGEST_STEP, _TIMES_EVEN * even):
        sentences["collapse"] = (
            f"the learned schedule collapses: one of {num_steps - 1} steps has {largest:.0%} of the"
            " range of log SNR; a lower learning rate or a narrower range may help"
        )
    if high > _LIMIT or low < -_LIMIT or high - low < 1.0:
        sentences["range"] = (
            f"log SNR now goes from {high:.1f} to {low:.1f}; learned endpoints should stay between"
            f" {_LIMIT:g} and {-_LIMIT:g} and at least 1 apart, or be fixed"
        )
    return sentences


def _stopped(leaf: Array) -> Array:
    return jax.lax.stop_gradient(leaf)
