"""Help of two screens of 40 lines and 80 columns; --help-all has the rest."""

import dataclasses

import pytest

from ddpm_jax import config as configs
from ddpm_jax.cli import main
from ddpm_jax.cli.help import COMMON

OWN = '''
import dataclasses
from ddpm_jax import config

@dataclasses.dataclass(frozen=True)
class Narrow(config.Network):
    channels_between: int = 4
    """Between the layers."""

    def make(self, images): ...

def get_config():
    return config.Config(network=Narrow())
'''


def text_of(capsys, *arguments):
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as left:
        code = left.code
    assert code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", [*configs.packaged(), None])
@pytest.mark.parametrize("command", ["train", "inspect"])
def test_help_of_a_config_fits_two_screens(command, name, capsys):
    lines = text_of(capsys, command, *([name] if name else []), "--help").splitlines()
    assert len(lines) <= 80
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("command", ["sample", "evaluate", "export", "replay", "plan"])
def test_help_of_other_commands_fits_two_screens(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert text_of(capsys, command, "--help").count("\n") <= 80


def test_common_fields_are_shown_with_their_values_and_docstrings(capsys):
    text = text_of(capsys, "train", "digits", "--help")
    assert "--train.steps 2500 " in text
    assert "--optimizer.learning-rate 0.003" in text
    assert "--workdir runs/digits" in text
    assert "Directory for checkpoints, metrics and" in text
    assert "--network u-net" in text
    assert "--train.missed-saves" not in text
    assert "--help-all" in text


def test_common_fields_exist():
    fields = {field.name for field in dataclasses.fields(configs.Config)}
    families = configs.families()
    for dotted in COMMON:
        name, _, inner = dotted.partition(".")
        kinds = configs.members(families[name]) if name in families else [configs.Train]
        assert name in fields
        assert not inner or any(
            inner in (field.name for field in dataclasses.fields(kind)) for kind in kinds
        )


def test_the_fields_of_members_of_ones_own_are_common(tmp_path, capsys):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    text = text_of(capsys, "train", path, "--help")
    assert "--network.channels-between 4 Between the layers." in " ".join(text.split())
    assert "--network narrow" in text


@pytest.mark.parametrize("arguments", [["train", "digits"], ["evaluate"]])
def test_help_all_has_what_help_leaves_out(arguments, capsys):
    short, long = (text_of(capsys, *arguments, option) for option in ("--help", "--help-all"))
    for option in ("--sampler.guidance-rescale", "--data.memory-gb"):
        assert option not in short
        assert option in long


def test_a_wrong_option_is_met_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as left:
        main(["train", "digits", "--train.stepz", "3"])
    assert left.value.code == 2
    assert "--train.steps" in capsys.readouterr().err
