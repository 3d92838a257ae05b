"""Runs of the command in processes of their own, alone or several together, to be hurt.

Their networks are Mixers, which compile at once and have dropout, as a U-Net has.
"""

import dataclasses
import signal
import socket
import time
from typing import NamedTuple

import starter
from paths import ROOT

CACHE = ROOT / ".pytest_cache" / "jax"
"""Compiled programs for the processes of all tests: what is tested is what they compute."""


class Ended(NamedTuple):
    """A process that has ended."""

    code: int
    out: str
    errors: str


def start(arguments, *, command="train", hosts=1, devices=None, own=None, cache=CACHE):
    """The processes of one command: one for each host, with two devices in all by default.

    `own` are the further arguments of each of them.
    """
    config = {
        "jax_num_cpu_devices": devices or max(1, 2 // hosts),
        "jax_compilation_cache_dir": str(cache),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    meet = ["--hosts.coordinator", f"localhost:{free_port()}", "--hosts.count", str(hosts)]
    # Where one is killed before it has met the others, they wait for it so long.
    meet += ["--hosts.start-seconds", "20"]
    processes = []
    for index in range(hosts):
        told = [command, *arguments]
        if hosts > 1:
            told += [*meet, "--hosts.index", str(index)]
        told += own[index] if own else []
        processes.append(starter.start("networks:main", told, **config))
    return processes


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def ended(processes, *, timeout=600):
    """Waits for all of them; what is still there at the end of the time is killed."""
    try:
        said = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [Ended(process.returncode, *both) for process, both in zip(processes, said, strict=True)]


def finish(arguments, **kwargs):
    """A run that nothing befalls; what its first process prints."""
    all_ended = ended(start(arguments, **kwargs))
    assert [process.code for process in all_ended] == [0] * len(all_ended), all_ended
    assert [process.errors for process in all_ended] == [""] * len(all_ended)
    assert [process.out for process in all_ended[1:]] == [""] * (len(all_ended) - 1)
    return all_ended[0].out


def wait_for_checkpoint(processes, run, step):
    """Until one of `step` or later is there, or a process has ended."""
    while _all_run(processes):
        saved = (run / "checkpoints").glob("*")
        if any(folder.name.isdigit() and int(folder.name) >= step for folder in saved):
            return
        time.sleep(0.01)
    raise AssertionError(ended(processes))


def wait_for_file(processes, folder, pattern, every=0.01):
    """Until a file of this pattern is in the folder; no process may end before."""
    while not list(folder.glob(pattern)):
        assert _all_run(processes), ended(processes)
        time.sleep(every)


def contents(run):
    """Everything that has to agree: the final state, the metrics and the results, as bytes.

    Needs the fixture `mixers`.
    """
    import jax
    import numpy as np

    from ddpm_jax.config import JaxHosts, Jit
    from ddpm_jax.experiment import RunDirectory, build
    from ddpm_jax.training import Checkpoints

    directory = RunDirectory(run)
    config = directory.read_config()
    config = dataclasses.replace(config, hosts=JaxHosts(), mesh=Jit())
    experiment = build(config, devices=jax.devices()[:1])
    with Checkpoints(directory.checkpoints, read_only=True) as checkpoints:
        restored = checkpoints.restore(experiment.abstract_state)
    state = restored.state._replace(key=jax.random.key_data(restored.state.key))
    return {
        "step": restored.step,
        "data": restored.data_state,
        "state": jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), state),
        "metrics": directory.metrics.read_bytes(),
        "results": directory.results.read_bytes(),
        "pictures": {p.name: p.read_bytes() for p in directory.pictures.iterdir()},
    }


def kill_and_resume(arguments, run, *, kills, rng, later, hosts=(1,), **kwargs):
    """Starts the run and kills it `kills` times, each at a random moment; then lets it finish.

    Each time it has one of the numbers of `hosts`, at random, and one of its processes is killed:
    in one of four cases before its first steps, else at most `later` seconds after them, or after
    it has saved. The first kill comes when there is a checkpoint. Returns the line of each start
    that went on from one.
    """
    arguments = [*arguments, "--workdir", str(run)]
    resumed_from, startup = [], float("inf")
    for kill in range(kills):
        told, began = "", time.monotonic()
        processes = start(arguments, hosts=rng.choice(hosts), **kwargs)
        if kill < 2 or rng.random() < 0.75:
            wait = rng.uniform(0.0, later)
            told = _until(processes[0], "steps/s")
            startup = min(startup, time.monotonic() - began)
            if kill == 0 or rng.random() < 0.3:
                told += _until(processes[0], "checkpoint saved", times=2)  # the first of them is
        else:
            wait = rng.uniform(0.0, startup)
        time.sleep(wait)
        victim = rng.choice(processes)
        assert victim.poll() is None, f"it ended before it could be killed: {ended(processes)}"
        victim.send_signal(signal.SIGKILL)
        all_ended = ended(processes)
        for process, end in zip(processes, all_ended, strict=True):
            # One that is killed before it has met the others leaves them where they wait for it.
            assert process is victim or end.code in (0, 2, 4), end
            assert process is victim or end.errors.count("\n") == (end.code > 0), end
        told += all_ended[0].out
        last = told.strip().splitlines()[-1:]
        print(f"{len(processes)} processes, killed {processes.index(victim)}, {wait:.1f} s", last)
        resumed_from += _resumed(told)
    return resumed_from + _resumed(finish(arguments, hosts=rng.choice(hosts), **kwargs))


def _until(process, text, *, times=1):
    """What it says until a line with this text has come so often, or it ends."""
    told = ""
    for line in process.stdout:
        told += line
        if told.count(text) == times:
            break
    return told


def _all_run(processes):
    return all(process.poll() is None for process in processes)


def _resumed(out):
    return [line for line in out.splitlines() if line.startswith("resuming from")]
