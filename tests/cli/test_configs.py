"""The configs of the package, by their names."""

import pytest
from paths import ROOT

from ddpm_jax import config
from ddpm_jax.cli import main

NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def test_each_config_is_listed_in_a_line_of_its_own(capsys):
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert all(len(line.split()) > 4 for line in lines)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_that_of_the_file(name):
    assert config.load(name) == config.load(ROOT / "configs" / f"{name}.py")


def test_names_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert config.load("digits").workdir == "runs/digits"


@pytest.mark.parametrize("name", ["digits", "digits_correlated"])
def test_a_copy_is_the_same_config(name, tmp_path, capsys):
    path = tmp_path / "my.py"
    assert main(["configs", "copy", name, str(path)]) == 0
    assert config.load(path) == config.load(name)
    assert f"ddpm-jax train {path}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["copy", "digits", "there.py"], "'there.py', which exists already"),
        (["copy", "digits", "my.txt"], "'my.txt'; its name has to end in .py"),
        (["copy", "digits", "absent/my.py"], "there is no folder absent"),
        (["copy", "digts", "my.py"], "'digts'; no config of the package has this name"),
        (["copy", "digits"], "or copy NAME FILE.py, not 'copy' 'digits'"),
        (["digits"], "or copy NAME FILE.py, not 'digits'"),
    ],
)
def test_what_cannot_be_copied_is_a_sentence(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.py").write_text("mine")
    assert main(["configs", *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert (tmp_path / "there.py").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("digts", "digits"), ("cifar", "cifar10"), ("configs/digit.py", "digits")],
)
def test_a_name_that_is_not_there_is_met_with_the_nearest(name, nearest, capsys):
    for command in ("train", "inspect", "plan"):
        assert main([command, name]) == 2
        assert f"(did you mean {nearest}?)" in capsys.readouterr().err


def test_help_tells_configs_and_list_apart(capsys):
    assert main(["configs", "--help"]) == 0
    assert "`ddpm-jax list`" in capsys.readouterr().out
    assert main(["list", "--help"]) == 0
    assert "`ddpm-jax configs`" in capsys.readouterr().out
