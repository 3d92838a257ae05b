"""The wheel in an empty environment: the core alone, then all that training needs.

They build and install some gigabyte from pip's index, in minutes, and skip where there is none.
"""

import json
import os
import subprocess
import sys
import tarfile

import pytest
from paths import ROOT

pytest.importorskip("build", reason="build comes with the extra 'test'")

pytestmark = pytest.mark.thorough
MOST = 14
"""Distributions that the core may bring."""


def run(*command, cwd, check=True):
    """A process that sees nothing of this one's packages."""
    env = {name: os.environ[name] for name in os.environ if not name.startswith("PYTHON")}
    process = subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert not check or process.returncode == 0, process.stdout + process.stderr
    return process


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with dist/ and an environment that has nothing but pip."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    pip = folder / "venv" / "bin" / "pip"
    probe = run(pip, "download", "--no-deps", "--dest", "probe", "toolz", cwd=folder, check=False)
    if probe.returncode:
        pytest.skip("pip has no index here to install packages from")
    # As a release is made, from a copy: building leaves folders in the sources.
    files = run("git", "ls-files", cwd=ROOT, check=False).stdout.splitlines()
    if not files:
        pytest.skip("this is no checkout of git, whose files would be built")
    for name in filter(lambda name: (ROOT / name).is_file(), files):
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    built = run(sys.executable, "-m", "build", "--outdir", folder / "dist", "source", cwd=folder)
    assert "warning" not in (built.stdout + built.stderr).lower()
    return folder


def install(place, extra=""):
    (wheel,) = (place / "dist").glob("*.whl")
    run(place / "venv" / "bin" / "pip", "install", "--no-compile", f"{wheel}{extra}", cwd=place)


def test_the_source_distribution_has_what_tests_and_docs_need(place):
    (archive,) = (place / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    assert names >= {
        *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "start.py", "setup.cfg"),
        *("configs/digits.py", "tests/conftest.py", "benchmarks/__main__.py"),
        *("ddpm_jax/py.typed", "tests/support/stored/format1/config.json"),
    }


def test_the_core_alone_brings_little_and_says_what_the_command_needs(place):
    install(place)
    listed = run(place / "venv/bin/pip", "list", "--format=json", cwd=place).stdout
    names = {item["name"] for item in json.loads(listed)} - {"ddpm_jax", "pip", "setuptools"}
    assert len(names) <= MOST, names
    program = "from ddpm_jax import analytic, litmus, q_sample, samplers, schedules, processes"
    run(place / "venv/bin/python", "-c", program, cwd=place)
    command = run(place / "venv/bin/ddpm-jax", "train", "digits", cwd=place, check=False)
    assert command.returncode == 2
    assert command.stdout == ""
    assert command.stderr.endswith("is not installed: pip install 'ddpm_jax[train]'\n")
    assert command.stderr.count("\n") == 1


def test_the_wheel_trains_without_a_checkout(place):
    install(place, "[train]")
    run(
        *(place / "venv/bin/ddpm-jax", "train", "digits", "--train.steps", "10"),
        *("--evaluation.likelihood-times", "4", "--evaluation.num-samples", "4"),
        *("--schedule.num-steps", "20", "--workdir", "run"),
        cwd=place,
    )
    results = json.loads((place / "run" / "results.json").read_text())
    assert results["step"] == 10
    run(place / "venv/bin/ddpm-jax", "configs", "copy", "digits", "my.py", cwd=place)
    assert (place / "my.py").read_bytes() == (ROOT / "configs" / "digits.py").read_bytes()
