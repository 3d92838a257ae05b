"""Values of the wrong type, wherever a config comes from: a sentence, before anything is built."""

import copy
import dataclasses
import enum
import json
import math
import operator
import pathlib
import random

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import config as configs
from ddpm_jax.cli import main
from ddpm_jax.config import EMA, Archive, Config, ConfigError, Train
from ddpm_jax.config.values import effects

BASE = Config(data=Archive("a.npz"))
FIELDS = effects(BASE)


class Spacing(enum.StrEnum):
    LATE = "trailing"


class Steps(enum.IntEnum):
    FEW = 7


@dataclasses.dataclass(frozen=True)
class Longer(Train):
    steps: int = 9


@dataclasses.dataclass(frozen=True)
class Stranger(Train):
    stepz: int = 9


def with_any(field, value):
    """`BASE` with any value in a field, past the checks of annotations that the tests have."""

    def changed(whole, path):
        name, *inner = path
        whole = copy.copy(whole)
        put = changed(getattr(whole, name), inner) if inner else value
        object.__setattr__(whole, name, put)
        return whole

    return changed(BASE, field.split("."))


def nested(depth):
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def refusal(field, value):
    with pytest.raises(ConfigError) as caught:
        configs.validate(with_any(field, value))
    said = str(caught.value)
    assert said.startswith(field)
    assert "\n" not in said
    assert len(said) < 300
    return said


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("network.dtype", "float16", "is 'float16'; it has to be one of 'float32', 'bfloat16'"),
        ("network.dtype", "Float32", "did you mean 'float32'?"),
        ("network.dtype", None, "is None; it has to be one of"),
        ("network.predicts", "noise", "is 'noise'; it has to be one of 'eps'"),
        ("network.variance", "learned-rangee", "did you mean 'learned_range'?"),
        ("sampler.spacing", "trailng", "did you mean 'trailing'?"),
        ("sampler.threshold", "static", "is a str; it has to be a Threshold"),
        ("optimizer.decay", "cosine", "is a str; it has to be a Decay"),
        ("optimizer.decay", configs.CosineDecay, "is the class CosineDecay itself; it has to be a"),
        ("schedule", configs.CosineDecay(), "is a CosineDecay; it has to be a Schedule"),
        ("schedule", None, "is None; it has to be a Schedule"),
        ("train.steps", 2e1, "is 20.0; it has to be an integer; did you mean 20?"),
        ("train.steps", 2.5, "is 2.5; it has to be an integer"),
        ("train.steps", "20", "is '20'; it has to be an integer; did you mean 20?"),
        ("train.steps", True, "is True; it has to be an integer"),
        ("train.steps", math.nan, "is nan; it has to be an integer"),
        ("train.steps", 10**30, "it has to be an integer below 2^63"),
        pytest.param("train.steps", 10**5000, "an integer below 2^63", id="digits"),
        ("train.steps", 2**40, "it has to be 1 or more, and below 2^31"),
        ("train.steps", np.array([5]), "it has to be an integer"),
        ("train.steps", nested(100_000), "it has to be an integer"),
        ("averages.decays", 0.9, "is 0.9; it has to be a tuple of numbers; did you mean (0.9,)?"),
        ("averages.decays", "0.9, 0.99", "did you mean (0.9, 0.99)?"),
        ("averages.decays", (0.9, "x"), "[1] is 'x'; it has to be a number"),
        ("averages.decays", (0.9, math.nan), "[1] is nan; it has to be a number"),
        (
            "network.attention_levels",
            (1, 2.0),
            "[1] is 2.0; it has to be an integer; did you mean 2?",
        ),
        ("train.verify_checkpoints", 1, "has to be True or False; did you mean True?"),
        ("train.verify_checkpoints", "false", "did you mean False?"),
        ("preparation.size", "64", "it has to be an integer or None; did you mean 64?"),
        ("data.path", 3, "is 3; it has to be text"),
        ("data.path", "a\0b", "it has to be text that can be the name of a file"),
        ("data.memory_gb", math.nan, "is nan; it has to be a number"),
        ("data.memory_gb", math.inf, "is inf; it has to be finite"),
        ("data.memory_gb", 10**400, "it has to be a number"),
        ("workdir", "", "is ''; it has to be"),
        ("train", Train, "is the class Train itself; it has to be a Train"),
        ("train", {"steps": 3}, "is a dict; it has to be a Train"),
        ("train", None, "is None; it has to be a Train"),
        ("train", EMA(), "is an EMA; it has to be a Train"),
        ("train", Stranger(), ".stepz is not a field of Train (did you mean steps?)"),
        ("train.stpes", 5, " is not a field of Train (did you mean steps?)"),
        ("network.chanels", 5, " is not a field of UNet (did you mean channels?)"),
    ],
)
def test_a_value_of_another_type_is_named_with_the_nearest_right_one(field, value, said):
    assert said in refusal(field, value)


@pytest.mark.parametrize(
    ("field", "value", "same"),
    [
        ("train.steps", np.int16(7), 7),
        ("train.steps", jnp.int32(7), 7),
        ("train.steps", Steps.FEW, 7),
        ("optimizer.learning_rate", 1, 1.0),
        ("optimizer.learning_rate", np.float32(0.5), 0.5),
        ("optimizer.learning_rate", np.array(0.5), 0.5),
        ("sampler.spacing", Spacing.LATE, "trailing"),
        ("preparation.flip", np.bool_(True), True),
        ("data.path", pathlib.Path("digits"), "digits"),
        ("averages.decays", [0.5, 0], (0.5, 0.0)),
        ("averages.decays", np.array([0.5, 0.25]), (0.5, 0.25)),
        ("train", Longer(), Train(steps=9)),
    ],
)
def test_what_means_the_same_becomes_what_the_field_has(field, value, same):
    config = configs.validate(with_any(field, value))
    found = operator.attrgetter(field)(config)
    assert found == same
    assert type(found) is type(same)
    assert configs.from_json(json.loads(json.dumps(configs.to_json(config)))) == config


@pytest.mark.parametrize("field", FIELDS)
def test_no_field_takes_what_is_nothing_of_the_kind(field):
    for value in (object(), b"1", 1j, {}, math.nan, nested(5), lambda: 1, int, "\ud800"):
        refusal(field, value)
    stored = place = configs.to_json(BASE)
    *path, name = field.split(".")
    for part in path:
        place = place[part]
    is_member = isinstance(place[name], dict)
    for value, said in [({}, "has no class" if is_member else "is {}"), (b"1".hex, "is <")]:
        place[name] = value
        with pytest.raises(ConfigError, match=f"^{field} {said}"):
            configs.from_json(stored)


def test_random_values_are_refused_or_come_back_from_json():
    chance = random.Random(0)
    values = [
        *(None, True, False, 0, 1, -1, 2, 0.0, 0.5, 1.5, "", "digits", "trailing", (), (1,), [0.5]),
        *(math.inf, 10**20, "1", (None,), ("a",), np.float64(0.25), np.zeros(2)),
    ]
    accepted = 0
    for _ in range(500):
        config = with_any(chance.choice(list(FIELDS)), chance.choice(values))
        try:
            typed = configs.validate(config)
        except ConfigError:
            continue
        accepted += 1
        plain = configs.to_json(typed)
        assert configs.from_json(json.loads(json.dumps(plain, allow_nan=False))) == typed
    assert 40 < accepted < 360


def test_every_field_says_what_it_affects():
    """Also which member it is."""
    assert FIELDS.keys() == configs.flat(configs.to_json(BASE)).keys()


FILE = """
from ddpm_jax.config import *

def get_config():
    return Config({})
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optimizer=Adam(decay='linear')", "optimizer.decay is a str; it has to be a Decay"),
        ("sampler='plms'", "sampler is a str; it has to be a Sampler"),
        ("sampler=DDIM(spacing='trail')", "did you mean 'trailing'?"),
        ("optimizer=Adam(b1=1.0)", "optimizer.b1 is 1.0; it has to be in [0, 1)"),
        ("train=Train(steps=2e1)", "did you mean 20?"),
        ("schedule=Cosin()", "fails in line 5 with NameError: "),
        ("train=Train(stepz=3)", "fails in line 5 with TypeError: "),
        ("train=Train(stepz=3)", "steps"),
        ("network=UNet(chanels=3)", "channels"),
        ("sede=3", "seed"),
        ("data=Folder()", "fails in line 5 with TypeError: "),
        ("data=Folder(path=1/0)", "fails in line 5 with ZeroDivisionError: division by zero"),
    ],
)
@pytest.mark.usefixtures("without_annotation_checks")
def test_a_config_file_is_refused_before_anything_is_written(text, said, tmp_path, capsys):
    path = tmp_path / "some.py"
    path.write_text(FILE.format(text))
    for command in (
        ["train", str(path), "--workdir", str(tmp_path / "run")],
        ["inspect", str(path)],
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"ddpm-jax: the config {str(path)!r}")
        assert said in error
        assert error.count("\n") == 1
    assert list(tmp_path.glob("run*")) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def get_cfg(): pass", "has no get_config (did you mean get_cfg?)"),
        ("get_config = 3", "get_config is 3; it has to define a function"),
        ("def get_config(size): pass", "get_config(size) needs arguments"),
        ("async def get_config(): pass", "it has to define a function"),
        ("def get_config(): pass", "returns a NoneType"),
        ("\nimport numpyy", "fails in line 2 with ModuleNotFoundError"),
        ("\n\ndef broken(", "fails in line 3 with SyntaxError: '(' was never closed"),
        ("def get_config():\n    raise ValueError('a\\nb')", "in line 2 with ValueError: a b"),
        ("def f(): f()\nf()", "in line 1 with RecursionError"),
        ("raise type('E', (Exception,), {'__str__': lambda e: 1 / 0})()", "in line 1 with E: "),
        ("x = '\udcff'", "SyntaxError"),
        ("\0", "SyntaxError"),
        (
            "from ddpm_jax import config\n\n"
            "def get_config():\n    return config.validate(config.Config(seed=-1))",
            "in line 4: seed is -1",
        ),
    ],
)
def test_an_error_in_executing_the_file_is_a_sentence_with_its_line(text, said, tmp_path):
    path = tmp_path / "some.py"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError) as caught:
        configs.load(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_file_may_be_named_by_text_and_have_dataclasses_of_its_own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "from __future__ import annotations\nimport dataclasses\nfrom typing import ClassVar\n"
        "from ddpm_jax.config import Config\n\n@dataclasses.dataclass\nclass Own:\n"
        "    seeds: ClassVar[int] = 3\n\ndef get_config():\n    return Config(seed=Own.seeds)\n"
    )
    assert configs.load(str(path)) == configs.load(path) == Config(seed=3)
