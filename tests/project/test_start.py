"""How `start.py` installs: by uv where there is one, by pip everywhere else."""

import importlib.util
import json
import os
import sys

import pytest
from paths import ROOT

PIP = """
import json, os, sys
arguments = sys.argv[1:]
if arguments == ["config", "list"]:
    print(open("config").read())
else:
    open("pip", "w").write(json.dumps(arguments))
"""
UV = """#!{python}
import json, os, sys
variables = {{name: os.environ[name] for name in os.environ if name.startswith(("UV_", "SSL_"))}}
open("uv", "w").write(json.dumps([sys.argv[1:], variables]))
sys.exit({code})
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """The script, with an empty folder as its project, no uv on PATH and a pip that notes."""
    spec = importlib.util.spec_from_file_location("start", ROOT / "start.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in [name for name in os.environ if name.startswith(("UV_", "SSL_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "venv").mkdir()
    (tmp_path / "pip.py").write_text(PIP)
    (tmp_path / "config").write_text("")
    for name in ("setup.cfg", "pyproject.toml"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "COMPILES", False)
    pip = [sys.executable, "-S", str(tmp_path / "pip.py")]
    monkeypatch.setattr(module, "make_venv", lambda venv, python: pip)
    return module


def put_uv_on_path(tmp_path, code=0):
    uv = tmp_path / "bin" / "uv"
    uv.write_text(UV.format(python=sys.executable, code=code))
    uv.chmod(0o755)


def calls(tmp_path, name):
    path = tmp_path / name
    return json.loads(path.read_text()) if path.exists() else None


def test_without_uv_pip_installs(start, tmp_path):
    start.set_up(tmp_path / "venv", ["test"])
    assert calls(tmp_path, "pip")[-2:] == ["--editable", ".[test]"]
    assert (tmp_path / "venv" / "installed-test").is_file()


def test_uv_installs_the_same_with_the_settings_of_pip(start, tmp_path):
    put_uv_on_path(tmp_path)
    (tmp_path / "config").write_text(
        "global.extra-index-url='https://a/simple https://b/simple'\n"
        "global.index-url='https://old/simple'\ninstall.index-url='https://name:word@c/simple'\n"
        "global.find-links='/wheels\\n/more'\ndownload.pre='1'\n"
        ":env:.cert='/etc/ca.pem'\n:env:.disable-pip-version-check='1'\n"
    )
    start.set_up(tmp_path / "venv", [])
    arguments, variables = calls(tmp_path, "uv")
    python = str(tmp_path / "venv" / "bin" / "python")
    assert arguments == ["pip", "install", "--quiet", "--python", python, "--editable", "."]
    assert variables == {
        "UV_DEFAULT_INDEX": "https://name:word@c/simple",
        "UV_INDEX": "https://a/simple https://b/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/wheels,/more",
        "SSL_CERT_FILE": "/etc/ca.pem",
    }
    assert calls(tmp_path, "pip") is None
    assert (tmp_path / "venv" / "installed").is_file()


def test_settings_of_uv_itself_come_first(start, tmp_path, monkeypatch):
    put_uv_on_path(tmp_path)
    (tmp_path / "config").write_text("global.index-url='https://pip/simple'\n")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://uv/simple")
    start.set_up(tmp_path / "venv", [])
    assert calls(tmp_path, "uv")[1]["UV_DEFAULT_INDEX"] == "https://uv/simple"


def test_pip_installs_where_uv_fails(start, tmp_path, capfd):
    put_uv_on_path(tmp_path, code=1)
    start.set_up(tmp_path / "venv", [])
    assert calls(tmp_path, "pip")[-2:] == ["--editable", "."]
    assert "installing with pip" in capfd.readouterr().out


@pytest.mark.parametrize("setting", ["global.no-index='true'", ":env:.proxy='http://p'"])
def test_pip_installs_where_it_has_a_setting_that_uv_lacks(start, tmp_path, setting):
    put_uv_on_path(tmp_path)
    (tmp_path / "config").write_text(setting)
    start.set_up(tmp_path / "venv", [])
    assert calls(tmp_path, "uv") is None
    assert calls(tmp_path, "pip")[-2:] == ["--editable", "."]


@pytest.mark.parametrize("compiles", [False, True])
def test_modules_are_compiled_once_at_most(start, tmp_path, monkeypatch, compiles):
    """When they are installed only if Python does not keep what it compiles."""
    monkeypatch.setattr(start, "COMPILES", compiles)
    start.set_up(tmp_path / "venv", [])
    assert ("--no-compile" in calls(tmp_path, "pip")) == (not compiles)
    put_uv_on_path(tmp_path)
    start.set_up(tmp_path / "venv", ["test"])
    assert ("--compile-bytecode" in calls(tmp_path, "uv")[0]) == compiles


def test_what_is_installed_is_not_installed_again(start, tmp_path):
    put_uv_on_path(tmp_path)
    start.set_up(tmp_path / "venv", [])
    (tmp_path / "uv").unlink()
    start.set_up(tmp_path / "venv", [])
    assert calls(tmp_path, "uv") is None


def test_the_oldest_releases_are_the_lower_bounds_of_the_core(start, tmp_path, monkeypatch):
    monkeypatch.setattr(start, "find_python", lambda versions: f"python3.{versions[0][1]}")
    (tmp_path / "setup.cfg").write_text(
        "[options]\ninstall_requires =\n    jax>=0.8.0\n    numpy>=2.0\n"
    )
    start.set_up(tmp_path / "venv", ["test-core"], oldest=True)
    assert calls(tmp_path, "pip")[-4:] == ["--editable", ".[test-core]", "jax==0.8.0", "numpy==2.0"]


def test_the_core_is_tested_in_an_environment_of_its_own(start, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(start, "set_up", lambda *arguments: seen.append(arguments))
    monkeypatch.setattr(start.os, "execv", lambda path, command: seen.append(command))
    for options, name in (([], ".venv-core"), (["--oldest"], ".venv-core-oldest")):
        monkeypatch.setattr(sys, "argv", ["start.py", "core", *options, "-x"])
        start.main()
        assert seen[-2] == (tmp_path / name, ["test-core"], bool(options))
        assert seen[-1][0] == str(tmp_path / name / "bin" / "python")
        assert seen[-1][-3:] == ["tests/core", "ddpm_jax", "-x"]
