"""Kill -9 at any moment, run the same command again: the same bits as if nothing had happened."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A suite that runs in the background of a shell is deaf to interrupts, and so are its children.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from ddpm_jax.cli import main
sys.exit(main())
"""
COMMAND = [sys.executable, "-c", PROGRAM]


def start(arguments, cache):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        # Compile once for all the processes of a test: what is tested is what they compute.
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [*COMMAND, "train", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(arguments, cache):
    process = start(arguments, cache)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    return out


def wait_for_checkpoint(process, run, step):
    """Until one of `step` or later is there."""
    while process.poll() is None:
        saved = (run / "checkpoints").glob("*")
        if any(folder.name.isdigit() and int(folder.name) >= step for folder in saved):
            return
        time.sleep(0.01)


def contents(run):
    """Everything that has to agree: the final state, the metrics and the results, as bytes."""
    import jax
    import numpy as np

    from ddpm_jax.experiment import RunDirectory, abstract_state, build
    from ddpm_jax.training import Checkpoints

    directory = RunDirectory(run)
    experiment = build(directory.read_config())
    with Checkpoints(directory.checkpoints, read_only=True) as checkpoints:
        restored = checkpoints.restore(abstract_state(experiment))
    state = restored.state._replace(key=jax.random.key_data(restored.state.key))
    return {
        "step": restored.step,
        "data": restored.data_state,
        "state": jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), state),
        "metrics": directory.metrics.read_bytes(),
        "results": directory.results.read_bytes(),
        "pictures": {p.name: p.read_bytes() for p in directory.pictures.iterdir()},
    }


def kill_and_resume(arguments, run, cache, *, kills, rng, longest):
    """Starts the run and kills it `kills` times, each at a random moment; then lets it finish."""
    resumed_from = []
    for _ in range(kills):
        process = start([*arguments, "--workdir", str(run)], cache)
        time.sleep(rng.uniform(0.0, longest))
        process.send_signal(signal.SIGKILL)
        out, _ = process.communicate()
        resumed_from += [line for line in out.splitlines() if line.startswith("going on from")]
    out = finish([*arguments, "--workdir", str(run)], cache)
    resumed_from += [line for line in out.splitlines() if line.startswith("going on from")]
    return resumed_from


def test_two_kills_change_nothing(tmp_path):
    arguments = [str(ROOT / "tests" / "tiny.py"), "--train.steps", "60", "--train.save-every", "4"]
    # Each process measures the spectrum anew: what follows from it has to be the same, too.
    arguments += ["--process.name", "equal_snr"]
    cache = tmp_path / "cache"
    began = time.monotonic()
    finish([*arguments, "--workdir", str(tmp_path / "whole")], cache)
    process = start([*arguments, "--workdir", str(tmp_path / "killed")], cache)
    # The first kill waits for a checkpoint, so that there is something to go on from.
    wait_for_checkpoint(process, tmp_path / "killed", 8)
    process.kill()
    process.communicate()
    longest = (time.monotonic() - began) / 3
    resumed = kill_and_resume(
        arguments, tmp_path / "killed", cache, kills=1, rng=random.Random(0), longest=longest
    )
    assert resumed, "no process went on from a checkpoint"
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.slow  # ten processes that compile or load, and two whole runs: some minutes
def test_ten_kills_of_the_digits_config_change_nothing(tmp_path):
    arguments = [str(ROOT / "configs" / "digits.py"), "--train.steps", "1200"]
    arguments += ["--train.save-every", "20", "--train.draw-every", "500"]
    cache = tmp_path / "cache"
    finish([*arguments, "--workdir", str(tmp_path / "first")], cache)
    began = time.monotonic()
    finish([*arguments, "--workdir", str(tmp_path / "whole")], cache)
    # Long enough to reach training past imports and loading, short enough to leave some for ten.
    longest = 0.4 * (time.monotonic() - began)
    resumed = kill_and_resume(
        arguments, tmp_path / "killed", cache, kills=10, rng=random.Random(1), longest=longest
    )
    print("\n".join(resumed))
    assert len(set(resumed)) >= 4, "the kills were not spread over the run"
    whole = contents(tmp_path / "whole")
    assert contents(tmp_path / "killed") == whole
    assert contents(tmp_path / "first") == whole


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_at_hand_and_changes_nothing(tmp_path, asked):
    arguments = [str(ROOT / "tests" / "tiny.py"), "--train.save-every", "1000"]
    arguments += ["--train.steps", "300"]
    cache = tmp_path / "cache"
    finish([*arguments, "--workdir", str(tmp_path / "whole")], cache)
    process = start([*arguments, "--workdir", str(tmp_path / "stopped")], cache)
    for line in process.stdout:
        if line.startswith("step 20/"):
            break
    process.send_signal(asked)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + asked, out
    assert "Traceback" not in out
    assert "the same command goes on from there" in out
    (saved,) = re.findall(rf"stopped by {asked.name}; step (\d+) is saved", out)
    assert 20 <= int(saved) < 300
    out = finish([*arguments, "--workdir", str(tmp_path / "stopped")], cache)
    assert f"going on from step {saved}\n" in out
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_a_second_interrupt_does_not_wait(tmp_path):
    """While pictures are drawn, for which the first one waits."""
    arguments = [str(ROOT / "tests" / "tiny.py"), "--train.steps", "100000"]
    arguments += ["--train.draw-every", "5", "--evaluation.num-samples", "4096"]
    arguments += ["--train.save-every", "100000"]
    process = start([*arguments, "--workdir", str(tmp_path / "run")], tmp_path / "cache")
    for line in process.stdout:
        if line.startswith("step 5/"):
            break
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert "the same command goes on from the last checkpoint" in out
    assert "Traceback" not in out
