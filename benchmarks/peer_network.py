"""A network beside diffusers' own: the part "network" of `benchmarks.peers`."""

import contextlib
import functools
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from benchmarks import columns, network_cases, peak_memory, peer_torch
from benchmarks.columns import duration, number
from benchmarks.memory import check_fits
from benchmarks.network_cases import Case, What
from benchmarks.peer_torch import COMPILED, OURS, PAUSE, THEIRS
from benchmarks.results import Row, find, ratio
from benchmarks.settings import Common, Say
from benchmarks.timing import in_turns, spread, timed
from ddpm_jax.config import Config

__all__ = ["COLUMNS", "Network", "make_peers", "measured", "measured_case", "note_of", "notes"]

PEER_FACTOR = 1.6
"""What diffusers is expected to need at its peak, in units of what this library's program does: on
a CPU, the CIFAR-10 network took 1.0 times as much in a train step and 1.5 in a forward pass."""


class Network(NamedTuple):
    """What is compared, and how much of it."""

    name: str
    config: Config
    batch: int
    """Images of a train step and of a forward pass."""
    sample_batch: int
    """Images that are drawn, and images whose bits/dim are taken."""
    sample_steps: int
    chain_steps: int
    """T of the chain whose bits/dim are taken."""
    compiles: bool
    """Whether `torch.compile` is tried."""
    memory: Collection[What]
    """Cases whose peak is measured in processes of their own."""


def measured(
    libraries: peer_torch.Libraries, networks: Sequence[Network], common: Common, say: Say
) -> Iterator[Row]:
    """Yields the rows of each case of each network; both libraries run by turns."""
    with _compilation_cache() as cache:
        for network in networks:
            yield from _of_network(libraries, network, common, cache, say)


def make_peers(
    libraries: peer_torch.Libraries, network: Network, params: Any, seed: int
) -> dict[str, peer_torch.Peer]:
    """diffusers' network with these parameters, and one for `torch.compile`, by their names."""
    make_peer = functools.partial(
        peer_torch.Peer,
        libraries,
        network.config,
        network_cases.shape_of(network.config),
        device=peer_torch.torch_device(libraries.torch),
        dtype=network.config.network.compute_dtype,
        seed=seed,
    )
    peers = {THEIRS: make_peer()}
    if network.compiles:
        peers[COMPILED] = make_peer()
        peers[COMPILED].network.compile(dynamic=False)
    for peer in peers.values():
        peer_torch.copy_params(jax.device_get(params), peer.network, libraries.torch)
    return peers


def _of_network(
    libraries: peer_torch.Libraries, network: Network, common: Common, cache: str, say: Say
) -> Iterator[Row]:
    params = network_cases.random_params(network.config, common.seed)
    peers = make_peers(libraries, network, params, common.seed)
    for what in network_cases.WHATS:
        say(f"{network.name}: {what}")
        yield from measured_case(what, network, params, peers, common, cache)[0]


def measured_case(
    what: What,
    network: Network,
    params: Any,
    peers: dict[str, peer_torch.Peer],
    common: Common,
    cache: str = "",
) -> tuple[list[Row], Case]:
    """The rows of one case, this library's first, and what was timed for that.

    Args:
        what: the case.
        network: sizes, and what else is measured.
        params: of this library's network.
        peers: diffusers' networks, by their names in the table; none is fine.
        common: seed, and how often and how long each is run.
        cache: folder of JAX's compilation cache, for the processes that measure memory.
    """
    of_step = what in ("train step", "forward pass")
    batch = network.batch if of_step else network.sample_batch
    config, steps = network.config, network.sample_steps
    if what == "bits/dim":
        config = network_cases.with_chain(config, network.chain_steps)
        steps = network.chain_steps
    options: dict[str, Any] = {"batch": batch, "steps": steps, "seed": common.seed}
    ours = network_cases.make_case(what, config, params, **options)
    if peers:
        _check_peer(what, network, ours, batch)
    variants: dict[str, Callable[[], Any]] = {OURS: ours.run}
    compiling = {OURS: ours.program.compile_seconds}
    failed: dict[str, str] = {}
    for by, peer in peers.items():
        run = peer.make_run(what, batch, steps)
        if by == COMPILED:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # theirs, while they compile
                    compiling[by] = timed(run)
            except Exception as error:  # whatever their compiler lacks
                failed[by] = peer_torch.why_not_compiled(error)
                continue
        variants[by] = run
    runs = in_turns(variants, repeats=common.repeats, seconds=common.seconds, pause=PAUSE)
    rows = []
    for by in (OURS, *peers):
        case: dict[str, Any] = {
            "network": network.name,
            "what": what,
            "by": by,
            "batch": batch,
            "dtype": config.network.compute_dtype,
        }
        if not of_step:
            case["steps"] = steps
        if by in failed:
            rows.append(Row(case, numbers={"unavailable": failed[by]}))
            continue
        numbers: dict[str, Any] = {
            "parameters": network_cases.count(params) if by == OURS else peers[by].parameters,
            "images_per_second": batch / spread(runs[by]).median,
            "flops": ours.flops,
            "flops_per_second": ours.flops / spread(runs[by]).median,
        }
        if by == OURS:
            numbers["compiler_bytes"] = ours.program.peak_bytes
        if by != COMPILED and what in network.memory:
            numbers["peak_bytes"] = peak_memory.measured(by, what, config, cache=cache, **options)
        rows.append(Row(case, runs[by], compiling.get(by), numbers))
    return rows, ours


def _check_peer(what: What, network: Network, ours: Case, batch: int) -> None:
    if ours.program.peak_bytes is not None:
        check_fits(
            f"{what} of {network.name}, batch {batch}, in diffusers, estimated as"
            f" {PEER_FACTOR:g} times what ddpm_jax's program needs,",
            PEER_FACTOR * ours.program.peak_bytes,
            then="take a smaller batch",
        )


@contextlib.contextmanager
def _compilation_cache() -> Iterator[str]:
    """A folder in which JAX leaves its programs for the processes that measure memory."""
    own: dict[str, Any] = {
        "jax_compilation_cache_dir": None,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in own}
    if before["jax_compilation_cache_dir"]:  # the user's, or the tests'
        yield str(before["jax_compilation_cache_dir"])
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for name, value in (own | {"jax_compilation_cache_dir": folder}).items():
            jax.config.update(name, value)
        try:
            yield folder
        finally:
            for name, value in before.items():
                jax.config.update(name, value)


COLUMNS: columns.Columns = {
    "what": columns.case("what"),
    "network": columns.case("network"),
    "by": columns.case("by"),
    "dtype": columns.case("dtype"),
    "batch": columns.case("batch"),
    "steps": columns.case("steps"),
    "time": lambda row: columns.time(row) or str(row.numbers.get("unavailable", "")),
    "quartiles": columns.quartiles,
    "images/s": columns.figure("images_per_second"),
    "GFLOP/s": columns.figure("flops_per_second", unit=1e9),
    "peak MB": columns.figure("peak_bytes", unit=1e6),
    "compile": columns.compiling,
}
"""Headers of the table, and what stands under them."""


def notes(rows: list[Row]) -> list[str]:
    """What the numbers say."""
    sentences = []
    for network in dict.fromkeys(row.case["network"] for row in rows):
        here = find(rows, network=network)
        counts = {
            row.case["by"]: row.numbers["parameters"] for row in here if "parameters" in row.numbers
        }
        ours, theirs = counts[OURS], counts[THEIRS]
        same = "in both" if ours == theirs else f"in ddpm_jax and {theirs:,} in diffusers"
        sentences.append(f"{network}: {ours:,} parameters {same}.")
        for what in dict.fromkeys(row.case["what"] for row in here):
            sentences.append(note_of(find(here, what=what), f"{network}, {what}"))
    return sentences + peer_torch.notes_of_unavailable(rows)


def note_of(rows: list[Row], where: str) -> str:
    """One case of one network: who is faster, and by how much."""
    (ours,) = find(rows, by=OURS)
    others = [row for row in rows if row.seconds and row is not ours]
    compared = []
    for other in others:
        of_medians, lower, upper = ratio(ours, other)
        verdict = "the peer wins" if lower > 1.0 else "ddpm_jax wins" if upper < 1.0 else "a tie"
        compared.append(
            f"{number(of_medians)} of the time of {other.case['by']} ({number(lower)} to"
            f" {number(upper)}: {verdict})"
        )
    sizes = [row.numbers["peak_bytes"] for row in rows if row.numbers.get("peak_bytes")]
    memory = ""
    if len(sizes) == 2:  # ours comes first
        memory = f"; {number(sizes[0] / sizes[1])} of diffusers' memory at its peak"
    case = ours.case
    steps = f", {case['steps']} steps" if "steps" in case else ""
    beside = f", {' and '.join(compared)}" if compared else ""
    return (
        f"{where}, batch {case['batch']}{steps}, {case['dtype']}: ddpm_jax takes"
        f" {duration(ours.median)}{beside}{memory}."
    )
