"""Programs in the environment of a compiler for devices that are not there."""

import os
import subprocess
import sys

import pytest
from paths import SUPPORT

from ddpm_jax.errors import MissingExtra
from ddpm_jax.plan import topologies


def printed(name, program, *arguments):
    """What a program prints that compiles for a topology; without a compiler, skips the test."""
    topology = topologies.parse(name)
    try:
        topologies.check_compiler(topology)
    except MissingExtra as error:
        pytest.skip(str(error))
    env = topologies.environment(topology, os.environ)
    env["PYTHONPATH"] = os.pathsep.join([str(SUPPORT), env["PYTHONPATH"]])
    command = [sys.executable, "-c", program, name, *map(str, arguments)]
    process = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout
