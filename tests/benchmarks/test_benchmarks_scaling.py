"""How the benchmarks time steps on several devices and in several processes."""

import dataclasses
import importlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from paths import ROOT, SCALED, SUPPORT
from suites import run, timed_config

from benchmarks import machinery, overhead, scaling
from benchmarks.results import Row
from ddpm_jax import config as configs
from ddpm_jax.errors import MissingExtra, UserError


def test_what_is_timed_where(monkeypatch):
    asked = []

    def instead(config, place, forms, **options):
        asked.append((config.network.channels, str(place), forms))
        return []

    monkeypatch.setattr(overhead, "measured", instead)
    assert not list(scaling.run(scaling.Settings(parts=("timed",)), lambda what: None))
    places = ["1 device", "8 devices", "2 processes", "4 processes"]
    assert asked == [
        *((16, place, ("jit", "shard_map", "pmap")) for place in places),
        *((32, place, ("jit",)) for place in places),
    ]
    assert [
        (type(mesh), mesh.data, mesh.fsdp)
        for mesh in overhead.meshes(configs.Config(), overhead.Place(1, 8), ("shard_map", "pmap"))
    ] == [(configs.ShardMap, 8, 1), (configs.Pmap, 8, 1), (configs.ShardMap, 2, 4)]
    several = overhead.meshes(configs.Config(), overhead.Place(2, 1), ("jit", "pmap"))
    assert [(type(mesh), mesh.data) for mesh in several] == [(configs.Jit, 2)]


@pytest.mark.thorough
def test_a_form_that_forgets_to_average_is_seen(monkeypatch):
    forms = importlib.import_module("ddpm_jax.parallel.forms")
    monkeypatch.setattr(forms, "_average", lambda grad, axes, _: jax.lax.all_gather(grad, axes)[0])
    mesh = configs.Pmap(data=4, fsdp=1)
    alone, wrong = machinery.measure(timed_config(SCALED), [mesh], repeats=3, seconds=0.1)
    assert alone["difference"] == 0.0
    assert wrong["difference"] > 1e-3 * wrong["moved"]


@pytest.mark.thorough
def test_without_a_compiler_the_rest_is_timed_and_it_is_said(monkeypatch, capsys, tmp_path):
    def absent(topology):
        raise MissingExtra(str(topology), "libtpu", "plan")

    def instead(*arguments, **options):
        case = {"on": "1 device", "form": "none", "mesh of": "", "channels": 8}
        return [Row(case, [1.0], 1.0, {"difference": 0.0, "moved": 1.0, "over_one_device": 1.0})]

    monkeypatch.setattr(scaling, "check_compiler", absent)
    monkeypatch.setattr(overhead, "measured", instead)
    quick = ["--processes", "1", "--devices", "1", "--timed-channels", "8", "--out", tmp_path]
    code, out, error = run(capsys, "scaling", *quick)
    assert code == 0
    assert "v5p:2x2x2 needs libtpu, which is not installed" in error
    assert "Nothing was compiled for a mesh of TPUs or GPUs: v5p:2x2x2 needs libtpu" in out
    assert out.count("| differs after 20 |") == 1
    assert "| topology |" not in out
    monkeypatch.undo()
    monkeypatch.setattr("ddpm_jax.plan.requests.check_compiler", absent)
    code, _, error = run(capsys, "scaling", "--parts", "compiled", *quick)
    assert code == 2
    assert "needs libtpu, which is not installed" in error


@pytest.mark.thorough
def test_real_processes_share_a_step(monkeypatch):
    """Two of them, and parameters that differ by rounding alone."""
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    place = overhead.Place(2, 1)
    rows = overhead.measured(
        timed_config(), place, ["jit"], repeats=3, seconds=0.1, say=lambda what: None
    )
    assert [(row.case["form"], row.case["mesh of"]) for row in rows] == [
        ("none", ""),
        ("jit", "2x1"),
    ]
    assert all(len(row.seconds) == 3 and row.compile_seconds > 0.0 for row in rows)
    assert rows[1].numbers["difference"] < 1e-5 < rows[1].numbers["moved"]


@pytest.mark.thorough
def test_what_a_process_says_against_a_config_is_heard():
    config = timed_config()
    network = dataclasses.replace(config.network, channels=5)
    config = dataclasses.replace(config, network=network)
    with pytest.raises(UserError, match=r"network\.channels is 5"):
        overhead.measured(
            config, overhead.Place(1, 2), ["jit"], repeats=3, seconds=0.1, say=lambda what: None
        )


@pytest.mark.thorough
def test_ctrl_c_ends_the_processes_too(tmp_path):
    program = "import sys; from benchmarks.__main__ import main; sys.exit(main(sys.argv[1:]))"
    deaf = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = ["scaling", "--parts", "timed", "--out", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-c", deaf + program, *command],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert "1 device, 16 channels" in process.stderr.readline()
        children, deadline = [], time.monotonic() + 20.0
        while not children and time.monotonic() < deadline:
            threads = Path(f"/proc/{process.pid}/task").iterdir()
            children = [child for t in threads for child in (t / "children").read_text().split()]
        assert len(children) == 1
        time.sleep(0.5)  # it was just born
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted; nothing was written" in error
    assert not Path(f"/proc/{children[0]}").exists()
