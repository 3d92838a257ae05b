"""A process that measures the memory of one run: `python -m benchmarks.peak_memory`.

It is started by `measured` and not by hand. Each library and case has a process of its own, so that
neither another library nor another case leaves anything behind. After a run that does not count:

    on a CPU    what the process holds at most during a run (VmHWM) above what it held before
                (VmRSS), and the arrays that were there before: parameters, and for a train step
                twice as much for Adam, the average, the gradient where the library keeps it
    on a GPU    the peak that JAX's or PyTorch's allocator reports, the first run and the search for
                the fastest kernels included

Both libraries are measured alike. Linux alone reports the first; elsewhere there is no figure.
"""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks import network_cases, peer_torch
from benchmarks.settings import Say
from ddpm_jax.config import Config, from_message, to_message
from ddpm_jax.plan.subprocesses import serve, start

__all__ = ["main", "measured"]

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
Run = Callable[[], Any]


def measured(
    by: str,
    what: network_cases.What,
    config: Config,
    *,
    batch: int,
    steps: int,
    seed: int,
    cache: str,
) -> int | None:
    """Bytes at the peak of one run; None where nobody says.

    Args:
        by: "ddpm_jax" or "diffusers".
        what: the case.
        config: of the network and the chain; the network's dtype is both libraries'.
        batch: images.
        steps: of the samplers.
        seed: of parameters, images and noise.
        cache: folder of JAX's compilation cache, in which this process has left its program.
    """
    question = {
        "by": by,
        "what": what,
        "config": to_message(config),
        "batch": batch,
        "steps": steps,
        "seed": seed,
    }
    home = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS") or _platform(),
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    with start("benchmarks.peak_memory", question, environment) as child:
        return child.answer()


def _platform() -> str:
    platform = jax.devices()[0].platform
    return "cuda" if platform == "gpu" else platform


def main() -> None:
    """Answers one question."""
    serve(_answer)


def _answer(question: dict[str, Any], say: Say) -> int | None:
    config = from_message(question["config"])
    what, seed = question["what"], question["seed"]
    batch, steps = question["batch"], question["steps"]
    if question["by"] == "ddpm_jax":
        params = network_cases.random_params(config, seed)
        case = network_cases.make_case(what, config, params, batch=batch, steps=steps, seed=seed)
        held = network_cases.count(params) * 4 * (4 if what == "train step" else 1)
        return _peak(lambda: jax.block_until_ready(case.run()), held, _jax_peak)
    libraries = peer_torch.import_libraries("peers")
    device = peer_torch.torch_device(libraries.torch)
    peer = peer_torch.Peer(
        libraries,
        config,
        network_cases.shape_of(config),
        device=device,
        dtype=config.network.compute_dtype,
        seed=seed,
    )
    run = peer.make_run(what, batch, steps)
    # Gradients stay until the next step has its own.
    held = peer.parameters * 4 * (5 if what == "train step" else 1)
    of_device = None if device == "cpu" else libraries.torch.cuda.max_memory_allocated
    return _peak(run, held, of_device or (lambda: None))


def _peak(run: Run, held: int, of_device: Callable[[], int | None]) -> int | None:
    run()
    if jax.devices()[0].platform != "cpu":
        run()
        return of_device()
    if not (_STATUS.is_file() and _CLEAR.is_file()):
        return None
    ctypes.CDLL(None).malloc_trim(0)  # what the compiler has left
    before = _kilobytes("VmRSS")
    _CLEAR.write_text("5")  # the high-water mark begins anew
    run()
    return (_kilobytes("VmHWM") - before) * 1024 + held


def _jax_peak() -> int | None:
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return None if peak is None else int(peak)


def _kilobytes(field: str) -> int:
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(lines[field].split()[0])


if __name__ == "__main__":
    main()
