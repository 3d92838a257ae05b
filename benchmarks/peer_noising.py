r"""Noising and tables beside diffusers: the part "noising" of `benchmarks.peers`.

The same arrays of images by turns, x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps by

    ddpm_jax              `q_sample`, jitted
    diffusers             `DDPMScheduler.add_noise` on PyTorch tensors
    diffusers, compiled   the same under `torch.compile`, where there is a C++ compiler for it

with the noise given and with the noise drawn, and the drawing of standard normals by itself (jax's
threefry, whose numbers do not depend on the device; PyTorch's Philox or Mersenne twister). Beside
it a whole train step of a small network, to see what a slower draw costs there, and the largest
relative error of both libraries' tables against float64.
"""

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import columns, moments, peer_torch, train_step
from benchmarks.columns import duration, number
from benchmarks.memory import check_fits
from benchmarks.peer_torch import COMPILED, OURS, PAUSE, THEIRS
from benchmarks.results import Row, find
from benchmarks.settings import Common, Say
from benchmarks.timing import compiled, in_turns, spread, timed
from ddpm_jax import q_sample, schedules
from ddpm_jax.config import Config

__all__ = ["COLUMNS", "WHATS", "measured", "notes"]

T = 1000
WHATS = ("noise given", "noise drawn", "normals alone")


def measured(
    libraries: peer_torch.Libraries,
    sizes: dict[str, tuple[int, int, int]],
    batches: Sequence[int],
    config: Config,
    batch: int,
    common: Common,
    say: Say,
) -> Iterator[Row]:
    """Yields the errors of the tables, each size and batch, and the step of a small network.

    Args:
        libraries: the peer's.
        sizes: of images, by their names.
        batches: images at once.
        config: of the train step.
        batch: images of the train step.
        common: seed, and how often and how long each is run.
        say: tells what is measured.
    """
    torch, scheduler_class = libraries.torch, libraries.diffusers.DDPMScheduler
    yield from _table_errors(scheduler_class)
    for size, shape in sizes.items():
        for count in batches:
            say(f"{size}, batch {count}")
            yield from _noising(common, torch, scheduler_class, size, (count, *shape))
    say("the normals of a train step")
    yield from _in_a_step(common, torch, config, batch)


def _noising(
    common: Common, torch: Any, scheduler_class: Any, size: str, shape: tuple[int, ...]
) -> list[Row]:
    need = 32.0 * math.prod(shape)  # twice in float64 on the host, and in float32 for each library
    check_fits(f"--batches {shape[0]} of {size}", need, then="take a smaller one")
    rng = np.random.default_rng(common.seed)
    host = [rng.uniform(-1.0, 1.0, shape), rng.standard_normal(shape)]
    host_t = rng.integers(0, T, shape[0])

    schedule, key = schedules.cosine(T), jax.random.key(common.seed)
    x0, eps = (jnp.asarray(array, jnp.float32) for array in host)
    t = jnp.asarray(host_t, jnp.int32)
    ours: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "noise given": (lambda x0, t, eps: q_sample(schedule, x0, t, eps), (x0, t, eps)),
        "noise drawn": (
            lambda x0, t, key: q_sample(schedule, x0, t, jax.random.normal(key, shape)),
            (x0, t, key),
        ),
        "normals alone": (lambda key: jax.random.normal(key, shape), (key,)),
    }

    torch.manual_seed(common.seed)
    scheduler = scheduler_class(num_train_timesteps=T, beta_schedule="squaredcos_cap_v2")
    device = torch.device(peer_torch.torch_device(torch))
    # Channels first, as they have images.
    their_x0, their_eps = (
        torch.from_numpy(np.moveaxis(array, -1, 1).astype(np.float32).copy()).to(device)
        for array in host
    )
    their_t, their_shape = torch.from_numpy(host_t).to(device), tuple(their_x0.shape)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(device)

    def given() -> Any:
        return scheduler.add_noise(their_x0, their_eps, their_t)

    def drawn() -> Any:
        return scheduler.add_noise(their_x0, normals(), their_t)

    def normals() -> Any:
        return torch.randn(their_shape, device=device)

    theirs = dict(zip(WHATS, (given, drawn, normals), strict=True))

    def waited_for(function: Callable[[], Any]) -> Callable[[], Any]:
        return functools.partial(peer_torch.waited_for, torch, device.type, function)

    variants: dict[tuple[str, str], Callable[[], Any]] = {}
    compiling: dict[tuple[str, str], float] = {}
    failed: dict[tuple[str, str], str] = {}
    for what, (function, arguments) in ours.items():
        program = compiled(function, *arguments)
        compiling[what, OURS] = program.compile_seconds
        variants[what, OURS] = functools.partial(program.call, *arguments)
        variants[what, THEIRS] = waited_for(theirs[what])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # theirs, while they compile
                fast = torch.compile(theirs[what])
                compiling[what, COMPILED] = timed(waited_for(fast))
        except Exception as error:  # whatever their compiler lacks: a row says that it is missing
            failed[what, COMPILED] = peer_torch.why_not_compiled(error)
        else:
            variants[what, COMPILED] = waited_for(fast)
    runs = in_turns(variants, repeats=common.repeats, seconds=common.seconds, pause=PAUSE)

    rows = []
    for what in WHATS:
        for by in (OURS, THEIRS, COMPILED):
            case: dict[str, Any] = {"what": what, "by": by, "size": size, "batch": shape[0]}
            if (what, by) in failed:
                rows.append(Row(case, numbers={"unavailable": failed[what, by]}))
                continue
            seconds = runs[what, by]
            moved = {"noise given": 3, "noise drawn": 2, "normals alone": 1}[what]
            numbers = {
                "images_per_second": shape[0] / spread(seconds).median,
                "gigabytes_per_second": 4e-9 * moved * x0.size / spread(seconds).median,
                "torch_threads": torch.get_num_threads(),
            }
            rows.append(Row(case, seconds, compiling.get((what, by)), numbers))
    return rows


def _in_a_step(common: Common, torch: Any, config: Config, batch: int) -> list[Row]:
    """The train step, and its normals by both libraries."""
    state, images = train_step.state_and_images(config, batch, common.seed)
    step = compiled(train_step.make_step(config, "closed form"), state, images)
    normals = compiled(lambda key: jax.random.normal(key, images.shape), state.key)
    device = peer_torch.torch_device(torch)

    def draw() -> Any:
        return torch.randn(tuple(images.shape), device=device)

    variants = {
        ("train step", OURS): lambda: step.call(state, images),
        ("its normals", OURS): lambda: normals.call(state.key),
        ("its normals", THEIRS): lambda: peer_torch.waited_for(torch, device, draw),
    }
    runs = in_turns(variants, repeats=common.repeats, seconds=common.seconds, pause=PAUSE)
    size = "x".join(map(str, images.shape[1:]))
    return [
        Row({"what": what, "by": by, "size": size, "batch": batch, "step": True}, seconds)
        for (what, by), seconds in runs.items()
    ]


def _table_errors(scheduler_class: Any) -> list[Row]:
    """The largest relative error over t of each table, ours and theirs, against float64."""
    linear = np.cumsum(np.log1p(-np.linspace(1e-4, 0.02, T)))
    cosine = moments.cosine_alpha_bar(T)
    rows = []
    for name, log_alpha_bar, ours, options in (
        ("linear", linear, schedules.linear(T), {"beta_schedule": "linear"}),
        ("cosine", np.log(cosine), schedules.cosine(T), {"beta_schedule": "squaredcos_cap_v2"}),
    ):
        exact = {
            "beta": -np.expm1(np.diff(log_alpha_bar, prepend=0.0)),
            "alpha_bar": np.exp(log_alpha_bar),
            "1 - alpha_bar": -np.expm1(log_alpha_bar),
        }
        scheduler = scheduler_class(num_train_timesteps=T, **options)
        theirs = {
            "beta": scheduler.betas.numpy(),
            "alpha_bar": scheduler.alphas_cumprod.numpy(),
            "1 - alpha_bar": (1.0 - scheduler.alphas_cumprod).numpy(),
        }
        tables = (ours.betas, ours.alpha_bar, ours.noise_power)
        for by, of_one in ((OURS, dict(zip(exact, tables, strict=True))), (THEIRS, theirs)):
            for table, values in of_one.items():
                error = np.max(np.abs(np.asarray(values, np.float64) / exact[table] - 1.0))
                case: dict[str, Any] = {"table": table, "schedule": name, "by": by}
                rows.append(Row(case, numbers={"relative_error": float(error)}))
    return rows


def _what(row: Row) -> str:
    return str(row.case.get("what") or f"{row.case['table']}, {row.case['schedule']}")


COLUMNS: columns.Columns = {
    "what": _what,
    "by": columns.case("by"),
    "size": columns.case("size"),
    "batch": columns.case("batch"),
    "time": lambda row: duration(row.median) if row.seconds else row.numbers.get("unavailable", ""),
    "quartiles": columns.quartiles,
    "images/s": columns.figure("images_per_second"),
    "GB/s": columns.figure("gigabytes_per_second"),
    "relative error": columns.figure("relative_error"),
    "compile": columns.compiling,
}
"""Headers of the table, and what stands under them."""


def notes(rows: list[Row]) -> list[str]:
    """What the numbers say."""
    threads = {r.numbers["torch_threads"] for r in rows if "torch_threads" in r.numbers}
    sentences = [f"PyTorch has {', '.join(map(str, threads))} threads."]
    points = dict.fromkeys(
        (r.case["size"], r.case["batch"]) for r in rows if "size" in r.case and "step" not in r.case
    )
    for size, batch in points:
        ratios = []
        for what in WHATS:
            times = {
                str(row.case["by"]): row.median
                for row in find(rows, size=size, batch=batch, what=what)
                if row.seconds and "step" not in row.case
            }
            their = min(seconds for by, seconds in times.items() if by != OURS)
            faster = times[OURS] / their
            ratios.append(
                f"{what}, ddpm_jax takes {number(faster)} of the time"
                + (" (the peer wins)" if faster > 1.0 else "")
            )
        sentences.append(
            f"{size}, batch {batch}, beside the faster of diffusers' two: {'; '.join(ratios)}."
        )
    step = find(rows, what="train step")[0].median
    ours, theirs = (find(rows, what="its normals", by=by)[0].median for by in (OURS, THEIRS))
    size, batch = next((r.case["size"], r.case["batch"]) for r in rows if r.case.get("step"))
    sentences.append(
        f"The normals of a train step ({size}, batch {batch}) take {duration(ours)} here and"
        f" {duration(theirs)} in PyTorch. The step takes {duration(step)}: the difference is"
        f" {(ours - theirs) / step:.2%} of it."
    )
    tables = [row for row in rows if "table" in row.case]
    worst = {
        by: max(r.numbers["relative_error"] for r in find(tables, by=by)) for by in (OURS, THEIRS)
    }
    sentences.append(
        f"The largest relative error of a table: {number(worst[OURS])} in ddpm_jax and"
        f" {number(worst[THEIRS])} in diffusers."
    )
    return sentences + peer_torch.notes_of_unavailable(rows)
