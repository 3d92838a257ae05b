"""Plans for several topologies, each made in a process of its own, two at a time."""

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ddpm_jax.config import Config, to_message
from ddpm_jax.errors import UserError
from ddpm_jax.plan.subprocesses import Child, Say, start
from ddpm_jax.plan.topologies import Topology, check_compiler, environment

__all__ = ["plans"]

AT_ONCE = 2


def plans(
    requests: Sequence[tuple[Config, Topology]],
    *,
    advise: bool = True,
    largest_batch: bool = False,
    thorough: bool = False,
    say: Say = lambda what: None,
) -> list[dict[str, Any]]:
    """Plans one train step of each config on its topology, without the hardware.

    Ctrl-C ends all processes.

    Args:
        requests: pairs of a config and a topology, see `parse`.
        advise: if a step does not fit into memory, look for changes that make it fit.
        largest_batch: look for the largest batch that fits.
        thorough: let the compiler optimize as for a run, which takes minutes.
        say: gets a line before each compilation. Other threads may call it.

    Returns:
        A plan for each request in their order, as plain values. It has memory, FLOPs and traffic of
        one device, and the least time of a step.

    Raises:
        UserError: the compiler of a topology is not installed, or a config does not work on its
            topology.
    """
    for _, topology in requests:
        check_compiler(topology)
    running: set[Child] = set()
    ending = threading.Event()

    def request(config: Config, topology: Topology) -> dict[str, Any]:
        question = {
            "topology": str(topology),
            "config": to_message(config),
            "advise": advise,
            "largest_batch": largest_batch,
        }
        environ = environment(topology, os.environ, thorough=thorough)
        with start("ddpm_jax.plan.worker", question, environ) as child:
            running.add(child)
            try:
                if ending.is_set():
                    raise UserError("another topology failed")
                return child.answer(lambda what: say(f"{topology}: {what}"))
            finally:
                running.discard(child)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            return list(pool.map(request, *zip(*requests, strict=True)))
        finally:  # also of an interruption
            ending.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for child in list(running):
                child.end()
