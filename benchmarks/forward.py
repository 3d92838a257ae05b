r"""Measures the cost of x_t, given x_0.

Several ways, each at several sizes, batches and times t (x after t steps of the chain):

    Python loop          t calls of one jitted step, which draws its noise
    scan                 t steps in one compiled `lax.scan` (`q_chain`)
    closed form          one expression (`q_sample`), noise given
    closed form, drawn   the same, noise drawn inside
    spectral             the closed form of a blurring process, by a cosine transform; noise given
    affine               the closed form of a chain of dense matrices that do not commute; noise
                         given. Small images only: its tables hold d x d numbers for each t.
    affine set-up        what those tables take once: an associative scan over T steps

and beside them `x + y` on the same arrays, which reads and writes as much as the closed form with
noise given and computes next to nothing: what the memory allows.

Each row has its time, its throughput (GB/s counts the images that have to be read and written,
once, and not what a method moves on top), the memory that it needs at its peak, tables included,
the kernels that it launches, and how far the samples of one run are from the exact first two
moments (`benchmarks.moments`).

What it does not measure: a train step, in which noising is a small part (`train_step` does);
gradients; more than one device. A row whose program calls take less than five times as long as
one of a program that adds 1 to a number is marked with a d: dispatch is what it measures.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import columns, moments
from benchmarks.chains import Chains, make_chains
from benchmarks.columns import duration, number
from benchmarks.kernels import count_kernels
from benchmarks.memory import check_fits
from benchmarks.results import Row, find
from benchmarks.settings import Common, Say, check_values, parse_sizes
from benchmarks.timing import Program, compiled, in_turns, spread
from ddpm_jax import q_chain, q_sample, q_step
from ddpm_jax.errors import UserError

__all__ = ["COLUMNS", "PACKAGES", "Settings", "notes", "run"]

PACKAGES: tuple[str, ...] = ()
METHODS = (
    *("x + y", "closed form", "closed form, drawn", "spectral", "affine", "affine set-up"),
    *("scan", "Python loop"),
)
DISPATCH = 5.0
"""Times the cost of an empty program, below which a program call is called dispatch-bound."""


@dataclasses.dataclass(frozen=True)
class Settings(Common):
    """What `python -m benchmarks forward` takes."""

    sizes: tuple[str, ...] = ("8x8x1", "32x32x3", "64x64x3")
    """Images, height x width x channels."""
    batches: tuple[int, ...] = (1, 128)
    """Images at once."""
    times: tuple[int, ...] = (10, 100, 500, 1000, 4000)
    """Steps from x_0 to x_t."""
    num_steps: int = 4000
    """T of the chain, a cosine schedule; no t is above it."""
    longest: float = 6.0
    """Seconds that one run of a loop may take; rows of longer ones say what they would take."""
    longest_set_up: float = 12.0
    """Seconds that the tables of an affine chain may take; longer chains are left out."""
    affine_dims: int = 64
    """Numbers in an image, above which the affine chain is left out."""


class Variant(NamedTuple):
    """A way to x_t that is ready to run."""

    method: str
    t: int | None
    program: Program
    run: Callable[[], Any]
    images_moved: int
    """Arrays as large as the images that have to be read or written."""
    white: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
    """What `moments.distance` takes, of the result."""
    calls: int = 1
    """Program calls in a run."""


def run(settings: Settings, say: Say) -> Iterator[Row]:
    """Yields the rows of each size and batch as they are measured.

    Raises:
        UserError: settings that cannot work.
    """
    check_values(settings, distinct=("sizes", "batches", "times"))
    sizes = parse_sizes(settings.sizes)
    if settings.num_steps < 2:
        raise UserError(f"--num-steps is {settings.num_steps}; a chain has at least 2")
    for t in settings.times:
        if t > settings.num_steps:
            raise UserError(f"--times has {t}; the chain has --num-steps {settings.num_steps}")
    for size, shape in sizes.items():
        for batch in settings.batches:  # in float64 on the host, and with the noise in float32
            need = 16.0 * batch * math.prod(shape)
            check_fits(f"--batches {batch} of {size}", need, then="take a smaller one")

    one = jnp.float32(1.0)
    empty = compiled(lambda x: x + 1.0, one)
    turns = in_turns({"": lambda: empty.call(one)}, repeats=200, seconds=1.0)
    first = Row({"method": "empty program"}, turns[""], empty.compile_seconds)
    yield first
    least = DISPATCH * first.median
    for size, shape in sizes.items():
        say(f"{size}: tables")
        chains, set_up = make_chains(
            settings.num_steps,
            shape,
            sorted(settings.times) if int(np.prod(shape)) <= settings.affine_dims else [],
            longest=settings.longest_set_up,
        )
        yield from (dataclasses.replace(row, case={"size": size, **row.case}) for row in set_up)
        for batch in sorted(settings.batches):
            say(f"{size}, batch {batch}: closed forms")
            x0, eps, key = _arrays(settings, (batch, *shape))
            closed = _closed_forms(settings, chains, x0, eps, key)
            # The light ones among themselves: after a heavy one they would wait for cold caches.
            light = [v for v in closed if v.method in ("x + y", "closed form")]
            heavy = [v for v in closed if v not in light]
            rows: list[Row] = []
            for variants in (light, heavy):
                rows += _measured(variants, settings, size, x0.shape, least)
            say(f"{size}, batch {batch}: loops")
            rows += _loops(settings, chains.isotropic, size, x0, key, least)
            yield from sorted(rows, key=_place)


def _place(row: Row) -> tuple[int, int]:
    """In the table: by method, then by t."""
    return METHODS.index(str(row.case["method"])), row.case.get("t", 0)


def _arrays(settings: Settings, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(settings.seed)
    key, noise_key = jax.random.split(jax.random.key(settings.seed))
    x0 = jnp.asarray(rng.uniform(-1.0, 1.0, shape), jnp.float32)
    return x0, jax.random.normal(noise_key, shape), key


def _closed_forms(
    settings: Settings, chains: Chains, x0: jax.Array, eps: jax.Array, key: jax.Array
) -> list[Variant]:
    shape, first = x0.shape, jnp.zeros(x0.shape[0], jnp.int32)
    x0_host = np.asarray(x0)
    alpha_bar = moments.cosine_alpha_bar(settings.num_steps)

    def given(process: Any, x0: Any, t: Any, eps: Any) -> Any:
        return q_sample(process, x0, t, eps)

    def drawn(process: Any, x0: Any, t: Any, key: Any) -> Any:
        return q_sample(process, x0, t, jax.random.normal(key, shape))

    add = compiled(lambda x, y: x + y, x0, eps)
    variants = [Variant("x + y", None, add, lambda: add.call(x0, eps), 3)]

    def variant(
        method: str, process: Any, function: Any, noise: Any, white: Any, reached: Sequence[int]
    ) -> None:
        # Tables are arguments, not constants to be compiled in, and leaf by leaf: `lower` puts
        # what is no array into the places of a tree, which checked annotations refuse.
        tables, tree = jax.tree.flatten(process)

        def noised(tables: Any, x0: Any, t: Any, noise: Any) -> Any:
            return function(jax.tree.unflatten(tree, tables), x0, t, noise)

        program = compiled(noised, tables, x0, first, noise)
        for t in reached:
            times = jnp.full(shape[:1], t - 1, jnp.int32)
            variants.append(
                Variant(
                    method,
                    t,
                    program,
                    functools.partial(program.call, tables, x0, times, noise),
                    3 if function is given else 2,
                    functools.partial(white, t),
                )
            )

    def isotropic(t: int, x_t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return moments.white_isotropic(alpha_bar[t - 1], x0_host, x_t)

    def blurred(t: int, x_t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        u = t / settings.num_steps
        return moments.white_blurred(alpha_bar[t - 1], u, x0_host, x_t)

    def affine(t: int, x_t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return moments.white_affine(chains.marginals[t], x0_host, x_t)

    times = settings.times
    variant("closed form", chains.isotropic, given, eps, isotropic, times)
    variant("closed form, drawn", chains.isotropic, drawn, key, isotropic, times)
    variant("spectral", chains.spectral, given, eps, blurred, times)
    if chains.affine is not None:
        variant("affine", chains.affine, given, eps, affine, list(chains.marginals))
    return variants


def _loops(
    settings: Settings, schedule: Any, size: str, x0: jax.Array, key: jax.Array, least: float
) -> list[Row]:
    """Scan and Python loop by turns, for each t that does not take too long."""
    x0_host, alpha_bar = np.asarray(x0), moments.cosine_alpha_bar(settings.num_steps)

    def one_step(x: Any, t: Any, key: Any) -> Any:
        eps = jax.random.normal(jax.random.fold_in(key, t), x.shape)
        return q_step(schedule, x, jnp.broadcast_to(t, x.shape[:1]), eps)

    step = compiled(one_step, x0, np.int32(0), key)
    turns = in_turns({"": lambda: step.call(x0, np.int32(0), key)}, repeats=5, seconds=1)
    a_step = spread(turns[""]).median
    rows = []
    for steps in settings.times:
        if steps * a_step > settings.longest:
            for method in ("scan", "Python loop"):
                case = {"method": method, "size": size, "batch": len(x0), "t": steps}
                rows.append(Row(case, numbers={"left_out_seconds": steps * a_step}))
            continue

        def all_steps(x: Any, key: Any, steps: int = steps) -> Any:
            return q_chain(schedule, key, x, steps)

        def loop(steps: int = steps) -> jax.Array:
            x = x0
            for t in range(steps):
                x = step.call(x, np.int32(t), key)
            return x

        def white(
            x_t: np.ndarray, alpha_bar_t: float = alpha_bar[steps - 1]
        ) -> tuple[np.ndarray, np.ndarray]:
            return moments.white_isotropic(alpha_bar_t, x0_host, x_t)

        scan = compiled(all_steps, x0, key)
        variants = [
            Variant("scan", steps, scan, functools.partial(scan.call, x0, key), 2, white),
            Variant("Python loop", steps, step, loop, 2, white, calls=steps),
        ]
        rows += _measured(variants, settings, size, x0.shape, least)
    return rows


def _measured(
    variants: list[Variant], settings: Settings, size: str, shape: tuple[int, ...], least: float
) -> list[Row]:
    """A row for each variant, all run by turns; calls below `least` seconds are dispatch-bound."""
    distances: dict[int, moments.Moments] = {}

    def look(index: int, result: Any) -> None:
        white = variants[index].white
        if white is not None:
            distances[index] = moments.distance(*white(np.asarray(result)))

    runs = in_turns(
        {index: variant.run for index, variant in enumerate(variants)},
        repeats=settings.repeats,
        seconds=settings.seconds,
        look=look,
    )
    return [
        _row(variant, runs[index], distances.get(index), size, shape, least)
        for index, variant in enumerate(variants)
    ]


def _row(
    variant: Variant,
    runs: list[float],
    distance: moments.Moments | None,
    size: str,
    shape: tuple[int, ...],
    least: float,
) -> Row:
    case: dict[str, Any] = {"method": variant.method, "size": size, "batch": shape[0]}
    if variant.t is not None:
        case["t"] = variant.t
    elements, median = int(np.prod(shape)), spread(runs).median
    kernels = count_kernels(variant.program.hlo, shape)
    numbers = {
        "images_per_second": shape[0] / median,
        "gigabytes_per_second": 4e-9 * variant.images_moved * elements / median,
        "peak_bytes": variant.program.peak_bytes,
        **kernels._asdict(),
        "launches": kernels.launches * variant.calls,
        "dispatch_bound": median / variant.calls < least,
    }
    if distance is not None:
        numbers |= {**distance._asdict(), "far": distance.far}
    return Row(case, runs, variant.program.compile_seconds, numbers)


def _time(row: Row) -> str:
    if "left_out_seconds" in row.numbers:
        return f"(about {duration(row.numbers['left_out_seconds'])})"
    return columns.time(row) + (" d" if row.numbers.get("dispatch_bound") else "")


def _kernels(row: Row) -> str:
    numbers = row.numbers
    return f"{numbers['kernels']} ({numbers['image_kernels']})" if "kernels" in numbers else ""


COLUMNS: columns.Columns = {
    "method": columns.case("method"),
    "size": columns.case("size"),
    "batch": columns.case("batch"),
    "t": columns.case("t"),
    "time": _time,
    "quartiles": columns.quartiles,
    "images/s": columns.figure("images_per_second"),
    "GB/s": columns.figure("gigabytes_per_second"),
    "peak MB": columns.figure("peak_bytes", unit=1e6),
    "kernels (of images)": _kernels,
    "launches": columns.figure("launches"),
    "mean off, s.e.": columns.figure("mean_errors"),
    "variance off, s.e.": columns.figure("variance_errors"),
    "variance off": columns.figure("variance_distance"),
    "compile": columns.compiling,
}


def notes(rows: list[Row]) -> list[str]:
    """What the numbers say."""
    sentences = []
    points = sorted({(str(r.case["size"]), r.case["batch"]) for r in rows if "batch" in r.case})
    for size, batch in sorted(points, key=lambda point: -_elements(*point)):
        sentences += _notes_of(find(rows, size=size, batch=batch), f"{size}, batch {batch}")
    for size in dict.fromkeys(row.case["size"] for row in find(rows, method="affine set-up")):
        built = [row for row in find(rows, method="affine set-up", size=size) if row.seconds]
        row = max(built, key=lambda row: row.case["t"])
        sentences.append(
            f"{size}: the affine chain's tables for T = {row.case['t']} take"
            f" {duration(row.median)}, once, and {duration(row.compile_seconds)} to compile."
        )
    checked = [row for row in rows if "far" in row.numbers]
    far = [row for row in checked if row.numbers["far"]]
    if checked:
        worst = max(max(r.numbers["mean_errors"], r.numbers["variance_errors"]) for r in checked)
        sentences.append(
            f"Moments: {len(checked) - len(far)} of {len(checked)} rows are within"
            f" {moments.FAR:g} standard errors of the exact ones; the farthest is {worst:.2f} away."
        )
    sentences += [f"WRONG MOMENTS: {', '.join(map(str, row.case.values()))}." for row in far]
    bound = [row for row in rows if row.numbers.get("dispatch_bound")]
    empty = find(rows, method="empty program")
    if bound and empty:
        sentences.append(
            f"{len(bound)} rows, marked d, are dispatch-bound: their program calls take less than"
            f" {DISPATCH:g} times the {duration(empty[0].median)} of an empty program."
        )
    left_out = [row for row in rows if "left_out_seconds" in row.numbers]
    if left_out:
        sentences.append(
            f"{len(left_out)} rows in brackets were not run: what they would take is estimated from"
            " one step, or from a shorter chain (--longest and --longest-set-up decide)."
        )
    return sentences


def _notes_of(rows: list[Row], where: str) -> list[str]:
    """Of one size and batch."""
    medians: dict[tuple[str, Any], float] = {
        (row.case["method"], row.case.get("t")): row.median for row in rows if row.seconds
    }
    times = sorted(t for method, t in medians if method == "closed form")
    if not times:
        return []
    first, last = times[0], times[-1]
    closed, add = medians["closed form", last], find(rows, method="x + y")[0]
    bound = ", dispatch-bound," if add.numbers["dispatch_bound"] else ""
    compared = []
    for method, to in (
        *(("closed form, drawn", "closed form"), ("spectral", "closed form")),
        *(("affine", "closed form"), ("scan", "closed form, drawn")),
        ("Python loop", "closed form, drawn"),
    ):
        reached = [t for name, t in medians if name == method]
        if reached:
            t = max(reached)
            ratio = medians[method, t] / medians[to, t]
            compared.append(f"{method} {number(ratio)} times the {to} (t = {t})")
    return [
        f"{where}: the closed form reaches {add.median / closed:.0%} of the bandwidth of x +"
        f" y{bound} and takes {closed / medians['closed form', first]:.3f} times as long at t ="
        f" {last} as at t = {first}. Time of {'; '.join(compared)}."
    ]


def _elements(size: str, batch: int) -> int:
    return int(np.prod([int(n) for n in size.split("x")])) * batch
