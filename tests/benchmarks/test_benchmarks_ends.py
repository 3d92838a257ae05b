"""How a run of the benchmarks ends early: with ctrl-C, with what does not fit, without a peer."""

import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import SCALED, TINY
from suites import run

from benchmarks import memory, peer_network, peer_torch, results, timing, train_step
from benchmarks.results import Row
from ddpm_jax.config import AdamW, Config, UNet, load
from ddpm_jax.errors import UserError

ROWS = [
    Row({"noising": "none", "network": name, "batch": 1}, [1.0], numbers={"parameters": 1})
    for name in ("one", "two")
]


def ends_with(monkeypatch, end):
    """A suite whose first two rows are finished when `end` is called."""

    def rows(settings, say):
        yield from ROWS
        end()
        yield ROWS[0]

    monkeypatch.setattr(train_step, "run", rows)


def interrupt():
    raise KeyboardInterrupt


def refuse():
    raise UserError("the next batch needs 4 GB")


@pytest.mark.parametrize(
    ("end", "code", "sentence"),
    [(interrupt, 130, "interrupted"), (refuse, 2, "the next batch needs 4 GB")],
)
def test_the_rows_that_were_finished_are_in_the_file(
    end, code, sentence, monkeypatch, capsys, tmp_path
):
    picture = tmp_path / "train_step.png"
    picture.write_bytes(b"of an earlier run")
    ends_with(monkeypatch, end)
    got, _, error = run(capsys, "train_step", "--out", tmp_path)
    path = tmp_path / "train_step.json"
    assert got == code
    assert error.splitlines()[-1] == (
        f"python -m benchmarks: {sentence}; 2 finished rows are in {path}"
    )
    report = results.load(path)
    assert report.rows == ROWS
    assert not report.finished
    assert not picture.exists()
    said = results.conclusions(report, report, results.compare(report, report))
    assert "The first run did not end: some of its rows are missing." in said


def test_a_killed_process_leaves_the_rows_that_were_finished(monkeypatch, capsys, tmp_path):
    def kill():
        report = results.load(tmp_path / "train_step.json")  # what would be left now
        assert report.rows == ROWS
        assert not report.finished
        raise MemoryError

    ends_with(monkeypatch, kill)
    with pytest.raises(MemoryError):
        run(capsys, "train_step", "--out", tmp_path)


def test_without_a_finished_row_nothing_is_written(monkeypatch, capsys, tmp_path):
    def rows(settings, say):
        interrupt()
        yield ROWS[0]

    monkeypatch.setattr(train_step, "run", rows)
    code, _, error = run(capsys, "train_step", "--out", tmp_path)
    assert code == 130
    assert error.splitlines()[-1] == "python -m benchmarks: interrupted; nothing was written"
    assert not list(tmp_path.iterdir())


def test_a_file_of_before_has_all_its_rows(tmp_path):
    path = tmp_path / "a.json"
    report = results.Report("kl", {}, {}, {}, {}, "now", 1.0, ROWS, [])
    results.save(report, path)
    plain = json.loads(path.read_text())
    del plain["finished"]
    path.write_text(json.dumps(plain))
    assert results.load(path) == report


def test_a_program_that_does_not_fit_is_refused_before_it_runs(monkeypatch):
    x = jnp.ones((256, 256))
    monkeypatch.setattr(memory, "free_bytes", lambda: 3 * x.nbytes)
    assert timing.compiled(lambda x: x + 1.0, x).peak_bytes >= 2 * x.nbytes  # half of it is there
    monkeypatch.setattr(memory, "free_bytes", lambda: x.nbytes // 2)
    with pytest.raises(UserError, match=r"^the step needs 0\.000262 GB of memory and 0\.000131 GB"):
        timing.compiled(lambda x: x + 1.0, x, what="the step")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["forward", "--sizes", "64x64x3", "--batches", "100000000"],
            "--batches 100000000 of 64x64x3 needs 19,661 GB of memory",
        ),
        (
            ["train_step", "--configs", TINY, "--batches", "100000000000"],
            "a batch of 100000000000 of 8x8x1 needs 6,400 GB of memory",
        ),
    ],
)
def test_a_batch_that_does_not_fit_is_a_sentence(arguments, sentence, capsys, tmp_path):
    code, _, error = run(capsys, *arguments, "--out", tmp_path)
    assert code == 2
    assert sentence in error
    assert "are free; take a smaller one" in error


def test_free_memory_is_the_least_that_anybody_leaves(monkeypatch, tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  2000 kB\nMemAvailable:  1000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.free_host_bytes() == 1000 * 1024
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_host_bytes() == 1000 * 1024
    (tmp_path / "memory.max").write_text("1000000\n")
    assert memory.free_host_bytes() == 1000000 - 900000 + 100000
    meminfo.unlink()
    assert memory.free_host_bytes() is None


def test_what_nobody_reports_is_not_refused(monkeypatch):
    monkeypatch.setattr(memory, "free_host_bytes", lambda: None)
    memory.check_fits("a planet", 1e27, then="take a moon")


@pytest.mark.parametrize("missing", ["torch", "diffusers"])
def test_without_the_peer_its_extra_is_named(missing, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, missing, None)
    code, _, error = run(capsys, "peers", "--out", tmp_path)
    assert code == 2
    assert "needs diffusers and PyTorch, of the extra 'peers': pip install -e '.[peers]'" in error
    assert not list(tmp_path.iterdir())


def test_a_peer_on_another_kind_of_device_is_refused(monkeypatch):
    class Device:
        platform = "gpu"

    torch = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False))
    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    with pytest.raises(
        UserError, match="JAX computes on 'gpu' and this PyTorch has no such device"
    ):
        peer_torch.torch_device(torch)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--network-batches", "4"], "--networks has 2 entries and --network-batches 1"),
        (["--chain-steps", "1", "2", "3"], "--networks has 2 entries and --chain-steps 3"),
        (
            ["--sample-steps", "251"],
            "--sample-steps is 251; the chain of configs/digits.py has 250",
        ),
        (
            ["--networks", "configs/digits_blurring.py", TINY],
            "diffusers has isotropic chains alone",
        ),
        (
            ["--networks", "configs/cifar10_improved.py", TINY],
            "networks with one output and without classes",
        ),
        (["--memory", "everything"], "everything"),
        (["--dtype", "float64"], "float64"),
    ],
)
def test_bad_input_to_peers_is_a_sentence(arguments, sentence, capsys, tmp_path):
    code, _, error = run(capsys, "peers", *arguments, "--out", tmp_path)
    assert code == 2
    assert sentence in error
    assert "Traceback" not in error


def test_a_network_whose_heads_are_of_several_widths_has_no_peer():
    config = Config(network=UNet(heads=4, attention_resolutions=(8,)))
    with pytest.raises(UserError, match="cannot express heads=4: its heads are as wide on every"):
        peer_torch.check_network(config, (8, 8, 1))


def test_a_network_of_another_class_and_another_optimizer_have_no_peer():
    with pytest.raises(
        UserError, match="network is Scaled; diffusers has a counterpart of the UNet alone"
    ):
        peer_torch.check_network(load(SCALED), (8, 8, 1))
    with pytest.raises(UserError, match="optimizer is adam-w; this suite compares Adam"):
        peer_torch.check_network(Config(optimizer=AdamW()), (32, 32, 3))


def test_a_ratio_has_the_range_of_its_sides():
    one, other = Row({"a": 1}, [2.0, 2.2, 2.1]), Row({"a": 2}, [1.0, 1.1, 1.05])
    of_medians, lower, upper = results.ratio(one, other)
    np.testing.assert_allclose([of_medians, lower, upper], [2.0, 2.0 / 1.1, 2.2 / 1.0])


def test_a_note_says_who_wins_and_by_how_much():
    def row(by, seconds, **numbers):
        case = {"what": "train step", "network": "n", "by": by, "batch": 8, "dtype": "float32"}
        return Row(case, [seconds, 1.1 * seconds], numbers={"parameters": 5, **numbers})

    lost = [row("ddpm_jax", 2.0, peak_bytes=30.0), row("diffusers", 1.0, peak_bytes=40.0)]
    counts, said = peer_network.notes(lost)
    assert counts == "n: 5 parameters in both."
    assert "of the time of diffusers (1.82 to 2.2: the peer wins)" in said
    assert "0.75 of diffusers' memory at its peak" in said
    (_, won) = peer_network.notes([row("ddpm_jax", 1.0), row("diffusers", 2.0)])
    assert "0.5 of the time of diffusers (0.455 to 0.55: ddpm_jax wins)" in won
    alone = peer_network.note_of([row("ddpm_jax", 1.0)], "n, train step")
    assert alone == "n, train step, batch 8, float32: ddpm_jax takes 1.05 s."
