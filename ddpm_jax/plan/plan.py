"""A plan of one config on one topology, as plain values."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from ddpm_jax.config import Config
from ddpm_jax.errors import UserError
from ddpm_jax.experiment import image_spec_of
from ddpm_jax.plan import advice
from ddpm_jax.plan.estimate import Estimate, estimate
from ddpm_jax.plan.topologies import Topology

__all__ = ["make_plan"]


def make_plan(
    config: Config,
    topology: Topology,
    devices: Sequence[Any],
    *,
    advise: bool,
    largest_batch: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Compiles `config` for `devices`, and variants of it for advice and the largest batch.

    Args:
        config: of a training run.
        topology: of the devices.
        devices: the result of `topologies.devices`.
        advise: if the step does not fit into memory, look for changes that make it fit.
        largest_batch: look for the largest batch that fits.
        say: gets a line before each compilation.

    Raises:
        UserError: the config does not work, or not on this number of devices.
    """
    spec = image_spec_of(config)
    known: dict[Config, Estimate] = {}

    def look(changed: Config, what: str) -> Estimate:
        if changed not in known:
            say(what)
            known[changed] = estimate(changed, topology, devices, spec)
        return known[changed]

    first = look(config, f"compiling for {topology}")
    plan = _plain(topology, first)
    if advise and not first.fits:

        def fits(change: advice.Change) -> bool:
            try:
                return look(advice.apply(config, change), f"compiling with {change}").fits
            except UserError:  # pmap cannot split parameters
                return False

        size = first.devices
        solutions = advice.mildest(advice.changes(config, size), fits)
        plan["would_fit"] = [
            {
                "change": str(change),
                "needed_bytes": look(advice.apply(config, change), "").needed_bytes,
            }
            for change in solutions
        ]
    if largest_batch:
        plan["largest_batch"] = _largest_batch(config, first, look)
    return plan


def _largest_batch(
    config: Config, first: Estimate, look: Callable[[Config, str], Estimate]
) -> dict[str, int | None] | None:
    """Over all devices: the largest batch that fits, and the smallest tried that does not."""
    unit = first.devices * config.train.accumulate

    def needed(count: int) -> tuple[bool, int]:
        train = dataclasses.replace(config.train, batch_size=count * unit)
        result = look(
            dataclasses.replace(config, train=train), f"compiling with a batch of {count * unit}"
        )
        return result.fits, result.needed_bytes

    count = advice.largest(needed, first.usable_bytes, max(first.batch // unit, 1))
    if count is None:
        return None
    return {"fits": count.fits * unit, "fails": count.fails and count.fails * unit}


def _plain(topology: Topology, result: Estimate) -> dict[str, Any]:
    plan: dict[str, Any] = {
        "topology": str(topology),
        "chip": topology.chip.name,
        "chips": topology.chips,
        "devices": topology.devices,
        "slices": topology.slices,
        "fits": result.fits,
        **result._asdict(),
        "intensity": result.intensity,
    }
    plan["collectives"] = [
        row._asdict() | {"link_bytes": row.link_bytes, "network_bytes": row.network_bytes}
        for row in result.collectives
    ]
    if result.memory is not None and result.roofline is not None:
        plan["memory"] = result.memory._asdict()
        plan["roofline"] = result.roofline._asdict() | {
            "seconds": result.roofline.seconds,
            "limit": result.roofline.limit,
        }
    return plan
