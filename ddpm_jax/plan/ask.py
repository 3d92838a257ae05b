"""Plans for several topologies, each made in a process of its own, two at a time."""

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ddpm_jax.config import Config, to_json
from ddpm_jax.errors import UserError
from ddpm_jax.plan.children import Child, Say, start
from ddpm_jax.plan.topologies import Topology, check_compiler, environment

__all__ = ["plans"]

AT_ONCE = 2


def plans(
    asked: Sequence[tuple[Config, Topology]],
    *,
    advise: bool = True,
    largest_batch: bool = False,
    thorough: bool = False,
    say: Say = lambda what: None,
) -> list[dict[str, Any]]:
    """What `plan.make_plan` finds, in the order of what is `asked`. Ctrl-C ends all of it.

    Args:
        asked: configs of training runs, each with a topology of `topologies.parse`.
        advise: look for what would make it fit, where it does not.
        largest_batch: look for the largest batch that fits.
        thorough: let the compiler optimize as it does for a run.
        say: told what is being compiled; may be called from other threads.

    Raises:
        UserError: no compiler for one of them, or a config that cannot work there.
    """
    for _, topology in asked:
        check_compiler(topology)
    running: set[Child] = set()
    ending = threading.Event()

    def ask(config: Config, topology: Topology) -> dict[str, Any]:
        question = {
            "topology": str(topology),
            "config": to_json(config),
            "advise": advise,
            "largest_batch": largest_batch,
        }
        environ = environment(topology, os.environ, thorough=thorough)
        with start("ddpm_jax.plan.worker", question, environ) as child:
            running.add(child)
            try:
                if ending.is_set():
                    raise UserError("another topology failed")
                plan: dict[str, Any] = child.answer(lambda what: say(f"{topology}: {what}"))
                return plan
            finally:
                running.discard(child)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            return list(pool.map(ask, *zip(*asked, strict=True)))
        finally:  # also of an interruption
            ending.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for child in list(running):
                child.end()
