"""The strictest JAX there is: what passes here passes in a user's script.

Rank promotion raises, dtype promotion is strict, warnings are errors, annotations are checked
and there are 8 simulated devices on the CPU.
"""

import fcntl
import gc
import importlib.metadata
import os
import shutil

from paths import ROOT, TINY

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and compute little: without LLVM's optimizations, which cost a third of their
# time. Those marked "optimized" run with them, too (XLA_FLAGS= python3 start.py ...).
flags = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # Its older emitters, which are gone in 0.12, compile in half the time of the newer ones.
    flags += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", flags)

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# The same programs are compiled by several tests, and by every run of the suite.
cache = ROOT / ".pytest_cache" / "jax"
jax.config.update("jax_compilation_cache_dir", str(cache))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

import disks
import hypothesis
import jaxtyping
import pytest

# Annotations are checked in the tests only: users pay nothing for them.
jaxtyping.install_import_hook("ddpm_jax", "beartype.beartype")

# The same examples in every run, and no time limit that the first compilation would break.
hypothesis.settings.register_profile(
    "repeatable", derandomize=True, deadline=None, database=None, max_examples=30
)
hypothesis.settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also run the tests marked thorough")


def pytest_report_header(config: pytest.Config) -> str | None:
    if config.getoption("--all"):
        return None
    return "without the tests marked thorough: --all runs them, too"


OPTIMIZED = {
    f"test_{stem}"
    for stem in (
        *("schedules", "bases", "gaussians", "precision", "discretized"),
        *("forward", "reverse", "losses", "timesteps", "guidance", "likelihood_times"),
        *("layers", "parallel", "ema", "frechet"),
    )
}
"""Tables to their last places, and sums: what depends on how a compiler rounds. In other files
tests are marked one by one. Beside peers all tests are: CI runs them where peers are installed."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        bits = item.get_closest_marker("bits_of_two_programs")
        if item.path.stem in OPTIMIZED or item.path.stem.startswith("test_peer") or bits:
            item.add_marker("optimized")
        if bits and "use_fusion_emitters=false" in os.environ["XLA_FLAGS"]:
            item.add_marker(pytest.mark.skip("XLA's older emitters round two programs otherwise"))
    if config.getoption("--all"):
        return
    thorough = [item for item in items if item.get_closest_marker("thorough")]
    config.hook.pytest_deselected(items=thorough)
    items[:] = [item for item in items if not item.get_closest_marker("thorough")]


@pytest.fixture
def without_annotation_checks():
    """Lets a wrong argument reach the library's own guards."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module", autouse=True)
def _programs_of_a_file_end_with_it():
    """Each compiled program maps memory, and a process may have 65,530 maps: then it crashes."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="module")
def mixers():
    """Runs of this process have a Mixer for their network: what is tested is what they do."""
    from networks import make_mixers

    with pytest.MonkeyPatch.context() as patch:
        make_mixers(patch)
        yield


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A finished run of tiny.py on one device, to read and to copy; all files of tests share it.

    Its network is a Mixer: who builds it from its config needs the fixture `mixers`.
    """
    from networks import make_mixers

    from ddpm_jax.cli import main

    base = tmp_path_factory.getbasetemp()
    run = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny_run"
    with open(run.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (run / "results.json").exists():
            shutil.rmtree(run, ignore_errors=True)
            with pytest.MonkeyPatch.context() as patch:
                make_mixers(patch)
                assert main(["train", TINY, "--mesh.data", "1", "--workdir", str(run)]) == 0
    return run


@pytest.fixture
def disk(tmp_path):
    """A disk of its own, of 24 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    disks.mount(place)
    yield place
    disks.unmount(place)
