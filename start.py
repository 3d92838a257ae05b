#!/usr/bin/env python3
"""Sets up an environment of its own in .venv, once, and runs one of the project's commands in it.

    python3 start.py digits    train on handwritten digits, evaluate, draw (overrides may follow)
    python3 start.py test      tests of every part, some minutes; --all runs the whole suite
    python3 start.py peers     the same, with diffusers to compare with (PyTorch is 1 GB more)
    python3 start.py core      tests of the core where nothing else is installed; --oldest does so
                               with the oldest releases that setup.cfg allows, on Python 3.11
    python3 start.py lint      ruff and mypy
    python3 start.py docs      the documentation's site, into docs/_build/html
    python3 start.py links     whether the links of the documentation to the web work

It needs Python 3.11 to 3.13 and nothing else: the system's Python is left alone. Any Python 3 can
run this file; it looks for a supported one. Where uv is on PATH, it installs in place of pip.
Overrides of the config may follow `digits`, options of pytest `test`, `peers` and `core`. `core`
has an environment to itself, .venv-core or .venv-core-oldest.
"""

import ast
import configparser
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
SUPPORTED = ((3, 13), (3, 12), (3, 11))

# A file of tests stays in one process, because its tests share what they compile. In the order of
# paths: else the longest files, which have few tests, would come last, and one of them alone.
PYTEST = ["python", "-m", "pytest", "-n", "auto", "--maxprocesses=4", "--dist=loadfile"]
PYTEST += ["--no-loadscope-reorder"]
SPHINX = ["python", "-m", "sphinx", "--quiet", "--builder"]
# Strict: a warning, such as a link that leads nowhere or a cell that fails, fails the build.
SITE = ["html", "-W", "--keep-going", "-d", "docs/_build/doctrees", "docs", "docs/_build/html"]
LINKS = ["linkcheck", "-D", "nb_execution_mode=off", "docs", "docs/_build/links"]
COMMANDS = {
    "digits": (["train"], [["ddpm-jax", "train", "digits"]]),
    "test": (["test", "plan"], [PYTEST]),
    "peers": (["test", "peers"], [PYTEST]),
    "core": (
        ["test-core"],
        [[*PYTEST, "-rfE", "--doctest-ignore-import-errors", "tests/core", "ddpm_jax"]],
    ),
    "lint": (
        ["test", "dev"],
        [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]],
    ),
    "docs": (["all", "docs"], [[*SPHINX, *SITE]]),
    "links": (["all", "docs"], [[*SPHINX, *LINKS]]),
}
"""Each command: the extras of setup.cfg that it wants, and what runs."""

COMPILES = sys.dont_write_bytecode
"""Whether modules are compiled when they are installed. Most of them are never imported, and Python
compiles those that are; but with PYTHONDONTWRITEBYTECODE it would do so in each process anew."""


def main():
    arguments = sys.argv[1:]
    venv = ROOT / ".venv"
    if arguments[:1] == ["--venv"] and len(arguments) > 1:
        venv, arguments = Path(arguments[1]).resolve(), arguments[2:]
    if not arguments or arguments[0] not in COMMANDS:
        print(__doc__)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    oldest = arguments[0] == "core" and "--oldest" in arguments
    if oldest:
        arguments.remove("--oldest")
    if arguments[0] == "core" and venv == ROOT / ".venv":
        venv = ROOT / (".venv-core-oldest" if oldest else ".venv-core")
    extras, commands = COMMANDS[arguments[0]]
    set_up(venv, extras, oldest)
    os.chdir(str(ROOT))
    for command in commands[:-1]:
        code = subprocess.call([str(venv / "bin" / command[0]), *command[1:]])
        if code:
            return code
    last = [str(venv / "bin" / commands[-1][0]), *commands[-1][1:], *arguments[1:]]
    sys.stdout.flush()
    os.execv(last[0], last)


def set_up(venv, extras, oldest=False):
    """Installs the project and `extras` into `venv`, unless that was done already.

    With `oldest`, the core's packages are the oldest releases that setup.cfg allows.
    """
    stamp = venv / ("installed" + "".join("-" + extra for extra in extras))
    state = fingerprint(venv)
    if stamp.is_file() and stamp.read_text() == state:
        return
    python = find_python(SUPPORTED[-1:] if oldest else SUPPORTED)
    print(f"setting up {venv} with {python} (once; some minutes and up to 2 GB)", flush=True)
    pip = make_venv(venv, python)
    what = [f".[{','.join(extras)}]" if extras else ".", *(lower_bounds() if oldest else [])]
    if not install_with_uv(venv, pip, what):
        options = ["--quiet", "--disable-pip-version-check"]
        options += [] if COMPILES else ["--no-compile"]
        if subprocess.call([*pip, "install", *options, "--editable", *what], cwd=str(ROOT)):
            sys.exit("start.py: the installation failed; what pip printed above says why")
    stamp.write_text(fingerprint(venv))


def install_with_uv(venv, pip, what):
    """Whether uv is on PATH and has installed `what` into `venv`, as pip would."""
    uv = shutil.which("uv")
    settings = uv and uv_settings(pip)
    if settings is None:
        return False
    print(f"installing with {uv}", flush=True)
    command = [uv, "pip", "install", "--quiet", "--python", str(venv / "bin" / "python")]
    command += ["--compile-bytecode"] if COMPILES else []
    environment = {**settings, **os.environ}  # who has set up uv wants it so
    if subprocess.call([*command, "--editable", *what], cwd=str(ROOT), env=environment) == 0:
        return True
    print("start.py: uv could not, as it says above; installing with pip", flush=True)
    return False


def lower_bounds():
    """The oldest releases of what the core needs, as requirements."""
    config = configparser.ConfigParser()
    config.read(str(ROOT / "setup.cfg"))
    lines = config["options"]["install_requires"].split()
    return [line.replace(">=", "==") for line in lines]


UV_SETTINGS = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "constraint": "UV_CONSTRAINT",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "no-cache-dir": "UV_NO_CACHE",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
}
"""What uv reads in place of pip's settings. In variables: an index may have a password in it."""
INDIFFERENT = {
    *("disable-pip-version-check", "no-python-version-warning", "no-input", "root-user-action"),
    *("quiet", "verbose", "progress-bar", "no-color", "log", "retries", "cache-dir"),
    *("require-virtualenv", "break-system-packages", "no-warn-script-location", "config-file"),
}
"""Settings of pip that do not change what is installed."""


def uv_settings(pip):
    """Variables with which uv finds what pip would; None if pip has a setting that uv has not."""
    listed = subprocess.run([*pip, "config", "list"], stdout=subprocess.PIPE)
    values = {}
    for section in ("global", "install", ":env:"):  # a later one counts
        for line in listed.stdout.decode().splitlines():
            name, _, value = line.partition("=")
            if name.startswith(section + "."):
                values[name[len(section) + 1 :]] = ast.literal_eval(value)
    if listed.returncode or values.keys() - UV_SETTINGS.keys() - INDIFFERENT:
        return None
    settings = {UV_SETTINGS[name]: values[name] for name in values if name in UV_SETTINGS}
    if "UV_FIND_LINKS" in settings:
        settings["UV_FIND_LINKS"] = ",".join(settings["UV_FIND_LINKS"].split())
    # As pip does: the newest release of all indexes, not of the first that has the package.
    settings["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return {name: " ".join(value.split()) for name, value in settings.items()}


def fingerprint(venv):
    """What the installation depends on: the metadata, and where the folder is."""
    digest = hashlib.sha256(str(venv).encode())
    for name in ("setup.cfg", "pyproject.toml"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def make_venv(venv, python):
    """The pip command of a virtual environment at `venv`, made if there is none that works."""
    inside = [str(venv / "bin" / "python"), "-m", "pip"]
    if works(inside):
        return inside
    if venv.exists() and not (venv / "pyvenv.cfg").is_file():
        sys.exit(f"start.py: {venv} exists and is no virtual environment; move it away")
    shutil.rmtree(str(venv), ignore_errors=True)
    if subprocess.call([python, "-m", "venv", str(venv)], stdout=subprocess.DEVNULL) == 0:
        return inside
    # Some systems ship Python without ensurepip. Its pip, if there is one, can serve from outside.
    outside = [python, "-m", "pip", "--python", inside[0]]
    shutil.rmtree(str(venv), ignore_errors=True)
    made = subprocess.call([python, "-m", "venv", "--without-pip", str(venv)])
    if made == 0 and works(outside) and subprocess.call([*outside, "install", "-q", "pip"]) == 0:
        return inside
    sys.exit(
        f"start.py: {python} can make no virtual environment with pip in it; install its venv"
        " module (on Debian and Ubuntu: apt install python3-venv)"
    )


def works(pip):
    try:
        return subprocess.run([*pip, "--version"], capture_output=True).returncode == 0
    except OSError:
        return False


def find_python(versions=SUPPORTED):
    """This Python if it is one of `versions`, else the first of them on PATH."""
    if sys.version_info[:2] in versions:
        return sys.executable
    for major, minor in versions:
        found = shutil.which(f"python{major}.{minor}")
        # A launcher may stand in for a version that is not installed: ask it.
        if found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
            return found
    version = ".".join(map(str, sys.version_info[:2]))
    needed = " or ".join(f"{major}.{minor}" for major, minor in reversed(versions))
    sys.exit(f"start.py: this is Python {version}; Python {needed} is needed")


if __name__ == "__main__":
    sys.exit(main())
