"""How long something takes: compilation apart, everything waited for, what is compared in turns."""

import gc
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.memory import check_fits

__all__ = ["Program", "Spread", "compiled", "in_turns", "spread", "timed"]


class Program(NamedTuple):
    """A compiled function, and what the compiler says of it."""

    call: Callable[..., Any]
    compile_seconds: float
    """Tracing, lowering and compiling, together."""
    peak_bytes: int | None
    """Of its arguments, results and everything between; None where the compiler does not say."""
    hlo: str
    """What was compiled, as text: see `benchmarks.kernels`."""


class Spread(NamedTuple):
    """Seconds of a run."""

    median: float
    lower: float
    """First quartile."""
    upper: float
    """Third quartile."""


def compiled(
    function: Callable[..., Any],
    *arguments: Any,
    donate: tuple[int, ...] = (),
    what: str = "a program of this suite",
) -> Program:
    """`function` compiled for these arguments; nothing is run.

    Where jax keeps a persistent compilation cache, the seconds may be those of reading it.

    Raises:
        UserError: the program, which the error calls `what`, needs more memory than is free.
    """
    start = time.perf_counter()
    program = jax.jit(function, donate_argnums=donate).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    peak = _peak_bytes(program)
    if peak is not None:  # the arguments are there already
        held = sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(arguments))
        check_fits(what, peak - held, then="take a smaller batch or smaller images")
    return Program(program, seconds, peak, program.as_text() or "")


def in_turns(
    variants: Mapping[Any, Callable[[], Any]],
    *,
    repeats: int,
    seconds: float,
    least: int = 3,
    pause: float = 0.0,
    look: Callable[[Any, Any], None] = lambda name, result: None,
    ready: Callable[[], None] = lambda: None,
) -> dict[Any, list[float]]:
    """The seconds of every run of each variant.

    After one run of each that does not count, and whose result `look` is shown, rounds follow, in
    which each variant has one run, until its result is there. Each round has an order of its own,
    drawn by chance: in a fixed one, whoever comes after the largest finds cold caches each time.
    A variant is done after `repeats` runs, or when its runs have taken `seconds` together and there
    are `least` of them.

    `pause` is slept before each run: threads of one library that wait for work by spinning would
    be in the way of another's. `ready` is called last before each run, and its time does not count:
    processes that run together begin together.
    """
    for name, variant in variants.items():
        ready()
        look(name, jax.block_until_ready(variant()))
    runs: dict[Any, list[float]] = {name: [] for name in variants}
    left, order = list(variants), random.Random(0)
    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        while left:
            for name in order.sample(left, len(left)):
                if pause:
                    time.sleep(pause)
                ready()
                runs[name].append(timed(variants[name]))
            left = [
                name
                for name in left
                if len(runs[name]) < least
                or (len(runs[name]) < repeats and sum(runs[name]) < seconds)
            ]
    finally:
        if collects:
            gc.enable()
    return runs


def timed(variant: Callable[[], Any]) -> float:
    """Seconds of one run, until its result is there."""
    start = time.perf_counter()
    jax.block_until_ready(variant())
    return time.perf_counter() - start


def spread(runs: list[float]) -> Spread:
    """Median and quartiles."""
    lower, median, upper = np.percentile(runs, [25, 50, 75])
    return Spread(float(median), float(lower), float(upper))


def _peak_bytes(program: Any) -> int | None:
    memory = program.memory_analysis()
    if memory is None:
        return None
    parts = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    # A CPU's program has all of them at once (the resident set agrees to a thousandth); the peak
    # that is reported for it knows nothing of temporaries.
    peak = getattr(memory, "peak_memory_in_bytes", 0) if jax.default_backend() != "cpu" else 0
    return int(peak or parts - memory.alias_size_in_bytes)
