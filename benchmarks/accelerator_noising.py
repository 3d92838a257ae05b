"""x_t from x_0 on the device: the part "noising" of `benchmarks.accelerator`.

`q_sample` with the noise given, beside a copy of the images and beside x + y on the same arrays;
and with the noise drawn, in one expression and in a compiled loop of T steps. The bytes are those
that each has to read and write; the launches are those of the compiled program
(`benchmarks.kernels`).
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import columns
from benchmarks.columns import duration, number
from benchmarks.kernels import count_kernels
from benchmarks.results import Row
from benchmarks.settings import Common
from benchmarks.timing import compiled, in_turns, spread
from ddpm_jax import q_chain, q_sample, schedules

__all__ = ["COLUMNS", "measured", "notes"]

COPY, ADD, GIVEN, DRAWN, LOOP = "copy", "x + y", "closed form", "closed form, drawn", "loop, drawn"
MOVED = {COPY: 2, ADD: 3, GIVEN: 3, DRAWN: 2, LOOP: 2}
"""Arrays as large as the images that are read or written."""


def measured(common: Common, num_steps: int) -> Iterator[Row]:
    """Yields a row for each way, at the last t of a cosine chain of `num_steps`."""
    small = jax.devices()[0].platform == "cpu"
    shape = (16, 16, 16, 3) if small else (128, 64, 64, 3)
    schedule, key = schedules.cosine(num_steps), jax.random.key(common.seed)
    x0, eps = (jax.random.normal(key, shape) for key in jax.random.split(key))
    t = jnp.full(shape[:1], num_steps - 1, jnp.int32)

    def drawn(x0: Any, t: Any, key: Any) -> Any:
        return q_sample(schedule, x0, t, jax.random.normal(key, shape))

    def loop(x0: Any, key: Any) -> Any:
        return q_chain(schedule, key, x0, num_steps)

    functions: dict[str, tuple[Any, tuple[Any, ...]]] = {
        COPY: (jnp.copy, (x0,)),
        ADD: (lambda x, y: x + y, (x0, eps)),
        GIVEN: (lambda x0, t, eps: q_sample(schedule, x0, t, eps), (x0, t, eps)),
        DRAWN: (drawn, (x0, t, key)),
        LOOP: (loop, (x0, key)),
    }
    programs = {
        name: compiled(function, *arguments, what=f"noising, {name},")
        for name, (function, arguments) in functions.items()
    }
    runs = in_turns(
        {
            name: functools.partial(program.call, *functions[name][1])
            for name, program in programs.items()
        },
        repeats=common.repeats,
        seconds=common.seconds,
    )
    size = "x".join(map(str, shape[1:]))
    for name, program in programs.items():
        kernels = count_kernels(program.hlo, shape)
        numbers = {
            "gigabytes_per_second": 4e-9 * MOVED[name] * x0.size / spread(runs[name]).median,
            "launches": kernels.launches,
            "loops_known": kernels.loops_known,
        }
        case = {"part": "noising", "what": name, "size": size, "batch": shape[0], "T": num_steps}
        yield Row(case, runs[name], program.compile_seconds, numbers)


COLUMNS: columns.Columns = {
    "noising": columns.case("what"),
    "size": columns.case("size"),
    "batch": columns.case("batch"),
    "T": columns.case("T"),
    "time": columns.time,
    "quartiles": columns.quartiles,
    "GB/s": columns.figure("gigabytes_per_second"),
    "launches": columns.figure("launches"),
    "compile": columns.compiling,
}
"""Headers of the table, and what stands under them."""


def notes(rows: list[Row]) -> list[str]:
    """What the numbers say."""
    if not rows:
        return []
    times = {row.case["what"]: row.median for row in rows}
    launches = {row.case["what"]: row.numbers["launches"] for row in rows}
    rates = {row.case["what"]: row.numbers["gigabytes_per_second"] for row in rows}
    where = f"{rows[0].case['size']}, batch {rows[0].case['batch']}, T = {rows[0].case['T']}"
    return [
        f"{where}: the closed form moves {number(rates[GIVEN] / rates[ADD])} times the bytes per"
        f" second of x + y, and {number(rates[GIVEN] / rates[COPY])} times those of a copy.",
        f"{where}: with the noise drawn, the loop takes {duration(times[LOOP])} and"
        f" {launches[LOOP]:,} launches, the closed form {duration(times[DRAWN])} and"
        f" {launches[DRAWN]:,}: {number(times[LOOP] / times[DRAWN])} times as long.",
    ]
