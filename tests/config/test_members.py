"""Members that a config file defines: on the command line, and what is said of wrong ones."""

import pytest

from ddpm_jax import config as configs
from ddpm_jax.cli.arguments import parse_config
from ddpm_jax.cli.main import main
from ddpm_jax.config.values import effects

HEAD = """import dataclasses
import flax.linen as nn
import jax.numpy as jnp
from ddpm_jax import config

frozen = dataclasses.dataclass(frozen=True)


class Layer(nn.Module):
    width: int
    outputs: int = 1

    @nn.compact
    def __call__(self, x_t, t):
        return nn.Dense(self.outputs)(nn.Dense(self.width)(x_t))


@frozen
class Tiny(config.Network):
    \"\"\"Two dense layers.\"\"\"

    width: int = 4
    \"\"\"Between them.\"\"\"
    outputs: int = 1

    def make(self, images):
        return Layer(self.width, self.outputs)

"""
TAIL = """

def get_config():
    given = {'network': Tiny(), 'schedule': config.Linear(num_steps=8), 'mesh': config.Jit(data=1)}
    given |= {'train': config.Train(steps=2, batch_size=8)} | dict(%s)
    return config.Config(**given)
"""


@pytest.fixture
def write(tmp_path):
    """A config file with a class more and other members."""

    def write(text="", members=""):
        path = tmp_path / "own.py"
        path.write_text(HEAD + text + TAIL % members)
        return path

    return write


def refusal(path, capsys):
    """What `train` says of a config file; nothing is written."""
    capsys.readouterr()
    assert main(["train", str(path), "--workdir", str(path.parent / "run")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert not (path.parent / "run").exists()
    return said


class TestCommandLine:
    def parse(self, path, *arguments):
        return parse_config("train", [str(path), *arguments])

    def test_an_own_member_has_its_fields_there(self, write):
        path = write()
        network = self.parse(path, "--network.width", "8", "--network.predicts", "v").network
        assert (type(network).__name__, network.width, network.predicts) == ("Tiny", 8, "v")
        assert network.make(None).width == 8

    def test_members_of_members_are_replaced_and_changed(self, write):
        decay = ["--optimizer.decay", "cosine", "--optimizer.decay.final", "0.1"]
        config = self.parse(write(), "--optimizer", "lion", *decay, "--optimizer.b2", "0.5")
        assert config.optimizer == configs.Lion(b2=0.5, decay=configs.CosineDecay(final=0.1))

    def test_what_a_family_has_in_common_stays_where_a_member_is_replaced(self, write):
        path = write(members="sampler=config.DDIM(steps=3, eta=1.0, spacing='trailing')")
        sampler = self.parse(path, "--sampler", "heun").sampler
        assert sampler == configs.Heun(steps=3, spacing="trailing")
        same = self.parse(path, "--sampler=ddim", "--sampler.steps=2").sampler
        assert same == configs.DDIM(steps=2, eta=1.0, spacing="trailing")

    def test_a_class_of_the_file_is_found_by_its_name(self, write):
        text = "@frozen\nclass LargeTiny(Tiny):\n    width: int = 16\n"
        network = self.parse(write(text), "--network", "large-tiny").network
        assert (type(network).__name__, network.width) == ("LargeTiny", 16)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--network", "tinny"], "(did you mean tiny?)"),
            (["--objective", "elb"], "(did you mean elbo?)"),
            (["--network.width", "0.5"], "--network.width"),
            (["--network.widht", "5"], "--network.width"),
            (["--data", "folder"], "--data.path"),
            (["--data", "folder", "--data.path", ""], "data.path is ''; it has to be a name that"),
            (["--optimizer.decay", "lion"], "--optimizer.decay is 'lion'; it has to be one of"),
            (["--optimizer.decay", "cosine", "--optimizer.decay.final", "1"], "decay.final is 1.0"),
        ],
    )
    def test_what_is_wrong_is_named_with_the_nearest(self, write, arguments, said, capsys):
        path = write()
        try:
            code = main(["train", str(path), *arguments, "--workdir", str(path.parent / "run")])
        except SystemExit as left:  # by tyro
            code = left.code
        assert code == 2
        assert said in capsys.readouterr().err
        assert not (path.parent / "run").exists()

    def test_help_has_the_docstrings_of_own_fields(self, write, capsys):
        with pytest.raises(SystemExit):
            self.parse(write(), "--help")
        assert "Between them." in capsys.readouterr().out


WRONG = {
    "no make": (
        "class Bare(config.Network):\n    width: int = 4\n",
        "network=Bare()",
        ["TypeError", "Bare", "make"],
    ),
    "make returns no network": (
        "@frozen\nclass Text(config.Network):\n    def make(self, images):\n        return 'x'\n",
        "network=Text()",
        ["network: Text.make returned a str; it has to return a network with init and apply"],
    ),
    "make returns no transformation": (
        "@frozen\nclass Still(config.Optimizer):\n    def make(self, learning_rate): pass\n",
        "optimizer=Still()",
        ["optimizer: Still.make returned a NoneType; it has to return a GradientTransformation"],
    ),
    "make returns no schedule": (
        "@frozen\nclass Steep(config.Schedule):\n    def make(self):\n        return [0.5]\n",
        "schedule=Steep(num_steps=8)",
        ["schedule: Steep.make returned a list; it has to return a Schedule"],
    ),
    "make returns no function": (
        "@frozen\nclass Zero(config.Objective):\n    def make(self):\n        return 0.0\n",
        "objective=Zero()",
        ["objective: Zero.make returned a float; it has to return a function"],
    ),
    "make returns no law": (
        "@frozen\nclass First(config.Times):\n    def make(self, process):\n        return 0\n",
        "times=First()",
        ["times: First.make returned an int; it has to return a TimeLaw"],
    ),
    "an output of another shape": (
        "",
        "network=Tiny(outputs=2)",
        ["network: Tiny returns [8, 8, 8, 2] for x_t [8, 8, 8, 1]; it has to return one array"],
    ),
    "no pair where the variance is learned": (
        "",
        "network=Tiny(variance='learned_range'), objective=config.Hybrid()",
        ["network: Tiny returns [8, 8, 8, 1] for", "it has to return a pair of this shape"],
    ),
    "labels that the network does not take": (
        "",
        "network=Tiny(classes=10)",
        ["labels are passed to Layer, whose __call__ has no parameter 'labels'"],
    ),
    "a loss that is no loss for each example": (
        "@frozen\nclass Mean(config.Objective):\n    def make(self):\n"
        "        return lambda terms: jnp.mean((terms.target - terms.prediction) ** 2)\n",
        "objective=Mean()",
        ["objective: the loss of Mean has the shape [] for a batch of 8; it has to be [8]"],
    ),
    "a field that is no plain value": (
        "@frozen\nclass Active(Tiny):\n    activation: object = nn.relu\n",
        "network=Active()",
        ["network.activation of Active is annotated", "a field has to be int, float, bool, str"],
    ),
    "an annotation that fails": (
        "@frozen\nclass Odd(Tiny):\n    depth: 'Nothing' = 3\n",
        "network=Odd()",
        ["network: Odd has an annotation that fails with NameError"],
    ),
    "a value of another type": (
        "",
        "network=Tiny(width='wide')",
        ["network.width is 'wide'; it has to be an integer"],
    ),
    "a value that is not in its bounds": (
        "from typing import Annotated\n\n@frozen\nclass Bounded(Tiny):\n"
        "    rate: Annotated[float, config.FRACTION] = 0.5\n",
        "network=Bounded(rate=1.0)",
        ["network.rate is 1.0; it has to be in [0, 1)"],
    ),
    "a number that is not finite": (
        "@frozen\nclass Scaled(Tiny):\n    scale: float = 1.0\n",
        "network=Scaled(scale=float('inf'))",
        ["network.scale is inf; it has to be finite"],
    ),
    "no decorator": (
        "class Deep(Tiny):\n    depth: int = 3\n",
        "network=Deep()",
        [
            "network is a Deep, whose depth is not a field yet",
            "put @dataclasses.dataclass(frozen=True)",
        ],
    ),
    "a check of its own": (
        "@frozen\nclass Even(Tiny):\n    def check(self, config_):\n"
        "        raise config.ConfigError(f'network.width is {self.width}; it has to be odd')\n",
        "network=Even()",
        ["network.width is 4; it has to be odd"],
    ),
    "a class inside of a function": (
        "def local():\n    @frozen\n    class Inner(Tiny):\n        pass\n    return Inner()\n",
        "network=local()",
        ["network is a local.<locals>.Inner; define its class at the top level of the file"],
    ),
}


@pytest.mark.usefixtures("without_annotation_checks")
@pytest.mark.parametrize("what", WRONG)
def test_what_an_own_member_lacks_is_a_sentence_before_anything_is_written(write, what, capsys):
    text, members, parts = WRONG[what]
    said = refusal(write(text, members), capsys)
    for part in parts:
        assert part in said


def test_classes_of_an_imported_module_are_refused(write, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_lab_nets.py").write_text(HEAD)
    monkeypatch.syspath_prepend(tmp_path)
    said = refusal(write("import my_lab_nets\n", "network=my_lab_nets.Tiny()"), capsys)
    assert "network is my_lab_nets:Tiny; a run stores a copy of its config file only" in said
    assert "class Tiny(my_lab_nets.Tiny): ..." in said
    path = write("import my_lab_nets\nclass Tiny(my_lab_nets.Tiny): ...\n")
    assert configs.validate(configs.load(path)).network.width == 4
    assert configs.to_json(configs.load(path))["network"]["class"] == "config.py:Tiny"


def test_a_field_without_annotation_of_effect_has_that_of_its_family(write):
    config = configs.load(write())
    affected = effects(config)
    assert affected["network.width"] is affected["network"] is configs.Affects.MODEL
    assert affected["sampler.threshold"] is configs.Affects.REPORTS


def test_two_files_with_a_class_of_one_name_are_two(tmp_path):
    widths = []
    for width in (4, 6):
        path = tmp_path / f"own_{width}.py"
        path.write_text((HEAD + TAIL % "").replace("width: int = 4", f"width: int = {width}"))
        config = configs.load(path)
        widths.append(config.network.width)
        assert configs.source_of(config).content == path.read_bytes()
    assert widths == [4, 6]
