r"""Measures speed and exactness on the device that JAX finds, in one command.

    exactness    the mathematics of the core beside NumPy in float64, and every product of matrices
                 that has not the highest precision (TF32 on NVIDIA's cards is off by 1e-4 to 1e-3)
    train step   the whole step in bfloat16 and float32: images/s, share of the card's peak, memory,
                 compile time; the same bits when a state is put back and the steps are run again;
                 the most expensive kernels of a profile
    DDIM         sampling with the same network
    noising      q_sample beside a copy, and the loop of T steps beside the closed form

Steps and sampling are timed by turns with diffusers' on the same device, where PyTorch and
diffusers are installed and see one of that kind (see `benchmarks.peers`). On a GPU or a TPU the
network is that of configs/cifar10.py with 128 images; on a CPU everything is small, to see that it
works.

Parts are left out, and named, when the time of --budget is spent. What is not measured: several
devices, reading data, the largest batch that fits (give --batch), and programs compiled before: a
compilation counts from nothing, unless JAX has a persistent cache.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from benchmarks import (
    accelerator_exact,
    accelerator_noising,
    columns,
    network_cases,
    peer_network,
    peer_torch,
    profile,
    train_step,
)
from benchmarks.columns import duration, number
from benchmarks.network_cases import Case, What
from benchmarks.peer_torch import ENVIRONMENT
from benchmarks.results import Row, find
from benchmarks.settings import Common, Say, check_values
from ddpm_jax.config import Config, load
from ddpm_jax.errors import UserError
from ddpm_jax.plan.chips import CHIPS

__all__ = ["ENVIRONMENT", "PACKAGES", "Settings", "notes", "run", "tables"]

PACKAGES = ("torch", "diffusers", "jax-cuda13-plugin", "jax-cuda12-plugin", "libtpu")
TERA = 1e12
_H100, _V4, _V5E, _V6E = (CHIPS[name] for name in ("h100", "v4", "v5e", "v6e"))
PEAKS: dict[str, tuple[float, float]] = {
    "NVIDIA H100 80GB HBM3": (_H100.bfloat16_flops, _H100.float32_flops),
    # The same processor with more memory: https://www.nvidia.com/en-us/data-center/h200/.
    "NVIDIA H200": (_H100.bfloat16_flops, _H100.float32_flops),
    # https://www.nvidia.com/en-us/data-center/a100/: 312 TFLOPS in bfloat16, 156 in TF32.
    "NVIDIA A100-SXM4-40GB": (312 * TERA, 156 * TERA),
    "NVIDIA A100-SXM4-80GB": (312 * TERA, 156 * TERA),
    "TPU v4": (_V4.bfloat16_flops, _V4.float32_flops),
    "TPU v5 lite": (_V5E.bfloat16_flops, _V5E.float32_flops),
    "TPU v6 lite": (_V6E.bfloat16_flops, _V6E.float32_flops),
}
"""FLOP/s of products of matrices in bfloat16, and of float32 arrays at JAX's default precision
(TF32, or bfloat16 on TPUs), by JAX's names of the devices. Sources not given here are in
`ddpm_jax.plan.chips`."""

KERNELS = 10
RESTART_STEPS = 2
Dtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Settings(Common):
    """What `python -m benchmarks accelerator` takes."""

    config: Path | None = None
    """Of the network; by default configs/cifar10.py, and configs/digits.py on a CPU."""
    batch: int | None = None
    """Images; by default 128, and 16 on a CPU."""
    dtypes: tuple[Dtype, ...] = ("bfloat16", "float32")
    """Of the networks' computation, in the order of their importance."""
    sample_steps: int | None = None
    """Of DDIM; by default 50, and 5 on a CPU."""
    chain_steps: int | None = None
    """T of the loop that is compared with the closed form; by default 1000, and 50 on a CPU."""
    repeats: int = 20
    """Runs of each row that count, at most."""
    seconds: float = 3.0
    """Time for the runs of each row; there are at least three."""
    budget: float = 480.0
    """Seconds after which no part begins; one that is expected to end later does not, either."""
    compile: Literal["accelerators", "none"] = "accelerators"
    """Whether `torch.compile` is tried, which takes a minute or two for each dtype."""


class _Sizes(NamedTuple):
    """The settings that depend on the device where they are not given."""

    config: Path
    batch: int
    sample_steps: int
    chain_steps: int


class _Part(NamedTuple):
    name: str
    rows: Callable[[], Iterator[Row]]
    like: str = ""
    """A part before it that takes as long."""


def run(settings: Settings, say: Say) -> Iterator[Row]:
    """Yields the rows of each part as it is done.

    Raises:
        UserError: settings that cannot work.
    """
    check_values(settings, distinct=("dtypes",))
    sizes, start = _sizes(settings), time.perf_counter()
    config = load(sizes.config)
    libraries: peer_torch.Libraries | None = None
    try:
        peer = peer_torch.import_libraries("accelerator")
        peer_torch.torch_device(peer.torch)
        peer_torch.check_network(config, network_cases.shape_of(config))
        libraries = peer
    except UserError as error:
        yield _skipped("diffusers", str(error))
    took: dict[str, float] = {}
    for part in _parts(settings, sizes, config, libraries):
        begun = time.perf_counter()
        if begun - start + took.get(part.like, 0.0) >= settings.budget:
            why = f"the {settings.budget:g} seconds of --budget are spent, or would be"
            yield _skipped(part.name, why)
            continue
        say(part.name)
        try:
            yield from part.rows()
        except UserError as error:  # it does not fit
            yield _skipped(part.name, str(error))
        took[part.name] = time.perf_counter() - begun


def _skipped(what: str, why: str) -> Row:
    return Row({"part": "skipped", "what": what}, numbers={"skipped": why})


def _sizes(settings: Settings) -> _Sizes:
    """Those that are given, and defaults for the device that is there."""
    small = jax.devices()[0].platform == "cpu"
    return _Sizes(
        settings.config or Path("configs/digits.py" if small else "configs/cifar10.py"),
        settings.batch or (16 if small else 128),
        settings.sample_steps or (5 if small else 50),
        settings.chain_steps or (50 if small else 1000),
    )


def _parts(
    settings: Settings, sizes: _Sizes, config: Config, libraries: peer_torch.Libraries | None
) -> list[_Part]:
    """In the order of their importance."""
    first, *others = settings.dtypes
    name, num_steps = "train step, {}".format, config.schedule.num_steps
    if sizes.sample_steps > num_steps:
        raise UserError(f"--sample-steps is {sizes.sample_steps}; the chain has {num_steps}")
    networks = {dtype: _network(settings, sizes, config, dtype) for dtype in settings.dtypes}
    return [
        _Part("exactness", lambda: accelerator_exact.measured(settings.seed)),
        _Part(name(first), lambda: _train_step(settings, networks[first], libraries)),
        _Part("noising", lambda: accelerator_noising.measured(settings, sizes.chain_steps)),
        _Part("DDIM", lambda: iter(_measured("DDIM", settings, networks[first], libraries)[0])),
        *(
            _Part(
                name(dtype),
                functools.partial(_train_step, settings, networks[dtype], libraries),
                like=name(first),
            )
            for dtype in others
        ),
    ]


def _network(
    settings: Settings, sizes: _Sizes, config: Config, dtype: Dtype
) -> peer_network.Network:
    compiles = settings.compile == "accelerators" and jax.devices()[0].platform != "cpu"
    return peer_network.Network(
        sizes.config.stem,
        network_cases.with_dtype(config, dtype),
        sizes.batch,
        sizes.batch,
        sizes.sample_steps,
        config.schedule.num_steps,
        compiles,
        (),
    )


def _train_step(
    settings: Settings, network: peer_network.Network, libraries: peer_torch.Libraries | None
) -> Iterator[Row]:
    rows, case = _measured("train step", settings, network, libraries)
    yield from rows
    yield _restart(settings, network, case)
    kernels = profile.trace(case.run, case.program.hlo)
    dtype = network.config.network.compute_dtype
    for rank, kernel in enumerate(kernels[:KERNELS], start=1):
        yield Row(
            {"part": "kernels", "what": "train step", "dtype": dtype, "rank": rank},
            numbers=kernel._asdict(),
        )


def _measured(
    what: What,
    settings: Settings,
    network: peer_network.Network,
    libraries: peer_torch.Libraries | None,
) -> tuple[list[Row], Case]:
    """The rows of one case beside diffusers, if it is there, and what was timed for the first."""
    params = network_cases.random_params(network.config, settings.seed)
    peers = {}
    if libraries is not None:
        peers = peer_network.make_peers(libraries, network, params, settings.seed)
    rows, case = peer_network.measured_case(what, network, params, peers, settings)
    return [_speed(row) for row in rows], case


def _speed(row: Row) -> Row:
    """With the share of the card's peak, and what the device's allocator has had at most."""
    numbers, device = dict(row.numbers), jax.devices()[0]
    peaks = PEAKS.get(device.device_kind)
    if peaks is not None and "flops_per_second" in numbers:
        peak = peaks[0] if row.case["dtype"] == "bfloat16" else peaks[1]
        numbers["share_of_peak"] = numbers["flops_per_second"] / peak
    if row.case["by"] == peer_torch.OURS:
        numbers["peak_bytes"] = numbers.get("compiler_bytes")
    return dataclasses.replace(row, case={"part": "speed", **row.case}, numbers=numbers)


def _restart(settings: Settings, network: peer_network.Network, case: Case) -> Row:
    """A state that goes to the host and back, as a checkpoint's does, and the steps after it."""
    state, images = train_step.state_and_images(network.config, network.batch, settings.seed)
    saved = _on_host(state)
    ends = []
    for _ in range(2):
        for _ in range(RESTART_STEPS):
            state, _ = case.program.call(state, images)
        ends.append(jax.tree.leaves(_on_host(state)))
        state = _on_device(saved)
    different = [
        float(np.max(np.abs(one - other)))
        for one, other in zip(*ends, strict=True)
        if not np.array_equal(one, other)
    ]
    numbers = {
        "arrays": len(ends[0]),
        "different": len(different),
        "farthest": max(different, default=0.0),
    }
    dtype = network.config.network.compute_dtype
    return Row({"part": "restart", "what": "train step", "dtype": dtype}, numbers=numbers)


def _on_host(state: Any) -> Any:
    """Copies in NumPy, the key as its numbers."""
    return jax.tree.map(
        np.array, jax.device_get(state._replace(key=jax.random.key_data(state.key)))
    )


def _on_device(saved: Any) -> Any:
    state = jax.device_put(saved)
    return state._replace(key=jax.random.wrap_key_data(state.key))


_EXACT: columns.Columns = {
    "exactness": columns.case("what"),
    "of": columns.case("kind"),
    "relative error": columns.figure("relative_error"),
    "exact": lambda row: "yes" if row.numbers["exact"] else "NO",
    "products at default precision": lambda row: str(
        sum(row.numbers["default_precision"].values())
    ),
}
_SPEED: columns.Columns = {
    **peer_network.COLUMNS,
    "of peak": lambda row: (
        f"{row.numbers['share_of_peak']:.1%}" if "share_of_peak" in row.numbers else ""
    ),
}
_KERNELS: columns.Columns = {
    "kernel": lambda row: str(row.numbers["name"])[:60],
    "operation": lambda row: str(row.numbers["operation"])[-60:],
    "dtype": columns.case("dtype"),
    "launches": columns.figure("launches"),
    "time": lambda row: duration(row.numbers["seconds"]),
    "share": lambda row: f"{row.numbers['share']:.1%}",
}


def tables(rows: list[Row]) -> list[tuple[list[Row], columns.Columns]]:
    """One for each kind of rows that there is."""
    parts = [
        (find(rows, part="exactness"), _EXACT),
        (find(rows, part="speed"), _SPEED),
        (find(rows, part="kernels"), _KERNELS),
        (find(rows, part="noising"), accelerator_noising.COLUMNS),
    ]
    return [(group, headers) for group, headers in parts if group]


def notes(rows: list[Row]) -> list[str]:
    """What the numbers say."""
    sentences = _of_exactness(find(rows, part="exactness"))
    speed = find(rows, part="speed")
    for what, dtype in dict.fromkeys((row.case["what"], row.case["dtype"]) for row in speed):
        here = find(speed, what=what, dtype=dtype)
        sentences.append(peer_network.note_of(here, f"{here[0].case['network']}, {what}"))
    for row in find(rows, part="restart"):
        different, arrays = row.numbers["different"], row.numbers["arrays"]
        sentences.append(
            f"{row.case['dtype']}: {RESTART_STEPS} steps from a state that went to the host and"
            " back give "
            + (
                f"other bits in {different} of {arrays} arrays, by up to"
                f" {number(row.numbers['farthest'])} (XLA_FLAGS=--xla_gpu_deterministic_ops=true"
                " makes kernels of NVIDIA's cards deterministic)."
                if different
                else f"the same bits in all {arrays} arrays."
            )
        )
    sentences += accelerator_noising.notes(find(rows, part="noising"))
    return sentences + [
        f"Left out: {row.case['what']}: {row.numbers['skipped']}."
        for row in find(rows, part="skipped")
    ]


def _of_exactness(rows: list[Row]) -> list[str]:
    sentences = []
    for kind in dict.fromkeys(row.case["kind"] for row in rows):
        here = find(rows, kind=kind)
        wrong = [row for row in here if not row.numbers["exact"]]
        products = [
            f"{row.case['what']} ({', '.join(row.numbers['default_precision'])})"
            for row in here
            if row.numbers["default_precision"]
        ]
        worst = max(here, key=lambda row: row.numbers["relative_error"])
        sentences.append(
            f"Exactness, {kind}: {len(here) - len(wrong)} of {len(here)} are within"
            f" {accelerator_exact.BOUND:g} of float64; the farthest, {worst.case['what']}, is"
            f" {number(worst.numbers['relative_error'])} away."
            + (f" NOT EXACT: {', '.join(row.case['what'] for row in wrong)}." if wrong else "")
            + (f" Products at default precision: {', '.join(products)}." if products else "")
        )
    return sentences
