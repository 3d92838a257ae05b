"""An evaluation by several processes: the numbers of one, and nothing is lost when one dies."""

import contextlib
import json
import signal
import time

import numpy as np
import pytest
from paths import MIXED
from runs import ended, start, wait_for_file

from ddpm_jax.errors import UserError
from ddpm_jax.parallel import hosts

HEARTBEAT = 5


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    arguments = [MIXED, "--workdir", str(folder), "--train.draw-every", "1000"]
    (end,) = ended(start(arguments))
    assert end.code == 0, end
    return folder


def evaluate(run, out, *arguments, count, own=None):
    """The processes of an evaluation, each with one device."""
    options = ["--out", str(out), "--num", "250", "--params", "ema", *arguments]
    options += ["--evaluation.batch-size", "50", "--sampler.steps", "2"]
    if count > 1:
        options += ["--hosts.heartbeat-seconds", str(HEARTBEAT)]
    return start([str(run), *options], command="evaluate", hosts=count, devices=1, own=own)


def results_of(out, processes):
    """The results, and the bits per dimension of each image, of an evaluation that ends well."""
    all_ended = ended(processes, timeout=200)
    assert [end.code for end in all_ended] == [0] * len(processes), all_ended
    assert [end.out for end in all_ended[1:]] == [""] * (len(processes) - 1)
    with np.load(out / "bits_per_image_ema.npz") as archive:
        return json.loads((out / "results.json").read_text()), archive["bits_per_dim"]


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """What one process finds."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return results_of(out, evaluate(run, out, count=1))


def check_same(found, expected):
    """The same numbers, except for the rounding of sums over features."""
    results, bits = found
    np.testing.assert_array_equal(bits, expected[1])
    check_same_values(results, expected[0])


def check_same_values(value, expected):
    if isinstance(expected, dict):
        assert value.keys() == expected.keys()
        for name in expected:
            check_same_values(value[name], expected[name])
    elif isinstance(expected, list):
        for one, other in zip(value, expected, strict=True):
            check_same_values(one, other)
    elif isinstance(expected, float):
        assert value == pytest.approx(expected, rel=1e-6, abs=1e-9)
    else:
        assert value == expected


@pytest.mark.thorough
def test_two_processes_find_what_one_finds(run, tmp_path, whole):
    check_same(results_of(tmp_path / "out", evaluate(run, tmp_path / "out", count=2)), whole)


@pytest.mark.thorough
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_and_three_go_on(run, tmp_path, whole, victim):
    out = tmp_path / "out"
    processes = evaluate(run, out, count=2)
    wait_for_file(processes, out, "cache/samples/*/*.npy")
    began = time.monotonic()
    processes[victim].send_signal(signal.SIGKILL)
    other = ended(processes)[1 - victim]
    assert other.code == 4, other
    assert "the same command on all hosts continues from what is saved" in other.errors
    assert time.monotonic() - began < HEARTBEAT + 10
    assert not (out / "results.json").exists()
    drawn = {path: path.stat().st_mtime_ns for path in out.glob("cache/samples/*/*.npy")}
    check_same(results_of(out, evaluate(run, out, count=3)), whole)
    assert drawn.items() <= {path: path.stat().st_mtime_ns for path in drawn}.items()


@pytest.mark.thorough
def test_other_arguments_of_one_process_are_a_sentence(run, tmp_path):
    own = [[], ["--seed", "3"]]
    for end in ended(evaluate(run, tmp_path / "out", count=2, own=own)):
        assert end.code == 2
        sentence = "process 1 has other arguments (--seed is 3 there and 0 in process 0)"
        assert end.errors.endswith(f"\nddpm-jax: {sentence}\n")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_shared_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "alone", lambda: False)
    monkeypatch.setattr(hosts, "agreed", lambda value: value)
    monkeypatch.setattr(hosts, "gathered", lambda value: [value, False])
    monkeypatch.setattr(hosts, "together", contextlib.nullcontext)
    with pytest.raises(UserError, match=r"process 1 does not see .* disk that all hosts share"):
        hosts.check_shared(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
