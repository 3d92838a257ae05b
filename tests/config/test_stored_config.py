"""Configs as runs store them: format 1 is read for ever, and what cannot be read is a sentence."""

import json
import shutil

import pytest
from paths import SUPPORT

from ddpm_jax import config as configs
from ddpm_jax.config import Config, ConfigError
from ddpm_jax.config.source import Source
from ddpm_jax.experiment import RunDirectory, RunDirectoryError

FORMAT1 = SUPPORT / "stored" / "format1"


@pytest.fixture
def stored():
    return json.loads((FORMAT1 / "config.json").read_text())


def read(values, copy=FORMAT1 / "config.py"):
    """The config, and the lines that came with it."""
    lines = []
    return configs.from_json(values, copy=copy, report=lines.append), lines


class TestFormat1:
    """A file that a run of 2026 wrote. A later version changes the test's code, not the file."""

    def test_is_read_with_all_its_members_and_fields(self, stored):
        config, lines = read(stored)
        for name, value in configs.flat(stored).items():
            found = config
            for part in name.split("."):
                found = getattr(found, part)
            if isinstance(found, configs.Member):
                assert type(found).__name__ == value
            else:
                assert (list(found) if isinstance(found, tuple) else found) == value, name
        (executing, lacking) = lines
        assert "executing" in executing
        assert lacking == (
            "the stored config lacks fields, which take their defaults:"
            " averages.warmup = True, sampler.rho = 7.0, sampler.threshold.maximum = None,"
            " evaluation.held_out_images = 10000, train.eval_every = 1000"
        )

    def test_has_a_member_that_is_no_default_in_each_family_that_has_several(self, stored):
        flat, default = configs.flat(stored), configs.flat(configs.to_json(Config()))
        for name, family in configs.families().items():
            if len(configs.members(family)) > 1:
                assert flat[name] != default[name], name

    def test_the_own_network_has_the_fields_that_were_stored(self, stored):
        network = read(stored)[0].network
        assert (type(network).__name__, network.width, network.depths) == ("TwoLayers", 6, (3,))
        assert network.make(None).width == 6


def test_the_copy_is_executed_after_a_line_that_says_so(stored, tmp_path):
    copy, marked = tmp_path / "config.py", tmp_path / "executed"
    copy.write_text((FORMAT1 / "config.py").read_text() + f"\nopen({str(marked)!r}, 'w').close()\n")
    source = Source("own.py", copy.read_bytes())
    stored["source"] = {"name": "own.py", "sha256": source.sha256}
    before = []

    def report(line):
        before.append((line, marked.exists()))

    configs.from_json(stored, copy=copy, report=report)
    line = f"executing {copy}, the run's copy of own.py, which defines network TwoLayers"
    assert before[0] == (line, False)
    assert marked.exists()


def test_nothing_is_executed_where_no_class_of_the_copy_is_needed(tmp_path):
    copy = tmp_path / "config.py"
    copy.write_text("raise SystemExit(9)")
    values = configs.to_json(Config(seed=3))
    assert read(values, copy) == (Config(seed=3), [])


def test_missing_fields_take_their_defaults_and_one_line_names_them(stored):
    del stored["network"]["width"], stored["optimizer"]["b1"], stored["logger"]
    config, lines = read(stored)
    assert (config.network.width, config.optimizer.b1) == (8, 0.9)
    assert config.logger == Config().logger
    assert [line for line in lines if "executing" not in line] == [
        "the stored config lacks fields, which take their defaults: network.width = 8,"
        " optimizer.b1 = 0.9, averages.warmup = True, sampler.rho = 7.0,"
        " sampler.threshold.maximum = None,"
        " evaluation.held_out_images = 10000, logger = TensorBoard, train.eval_every = 1000"
    ]


def put(dotted, value):
    """Changes a stored config; a value of ... removes the field."""

    def change(stored):
        *path, name = dotted.split(".")
        for part in path:
            stored = stored[part]
        if value is ...:
            del stored[name]
        else:
            stored[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("format", ...), "the stored config has no format: an older version wrote it; this"),
        (put("format", 3), "the stored config has the format 3; this version of ddpm_jax reads 1"),
        (put("format", "1"), "has the format '1'; this version"),
        (put("data.path", ...), "the stored config has no data.path, and it has no default"),
        (put("network.colour", 1), "has an unknown field network.colour"),
        (put("network.widht", 1), "unknown field network.widht (did you mean width?)"),
        (put("seeds", 1), "unknown field seeds (did you mean seed?)"),
        (put("network.width", 2.5), "network.width is 2.5; it has to be an integer"),
        (put("process.max_blur", -1.0), "process.max_blur is -1.0; it has to be 0 or more"),
        (put("optimizer.decay", []), "optimizer.decay is []; it has to be an object"),
        (put("sampler.class", ...), "sampler has no class, which says what a Sampler is"),
        (
            put("network.class", "ddpm_jax.config.network:UViT"),
            "network is 'ddpm_jax.config.network:UViT', a class that this version of ddpm_jax does"
            " not have",
        ),
        (put("network.class", "config.py:TwoLayer"), "does not have (did you mean TwoLayers?)"),
        (put("network.class", "os:system"), "a class that this version of ddpm_jax does not have"),
        (put("network.class", "ddpm_jax.config.process:os"), "does not have"),
        (put("network.class", "ddpm_jax.config.network:Network"), "does not have"),
        (put("schedule.class", "ddpm_jax.config.process:Isotropic"), "does not have"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(stored, change, said):
    change(stored)
    with pytest.raises(ConfigError) as caught:
        read(stored)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def run(tmp_path):
    """The folder of a run that has stored its config, and no more."""
    return RunDirectory(shutil.copytree(FORMAT1, tmp_path / "run"))


def test_an_edited_copy_is_refused_before_it_is_executed(run):
    run.config_copy.write_text(run.config_copy.read_text() + "\nraise SystemExit(9)\n")
    with pytest.raises(RunDirectoryError) as caught:
        run.read_config()
    said = str(caught.value)
    assert f"{str(run.config_copy)!r} has changed since training began (its SHA-256 differ" in said
    assert "which defines network TwoLayers" in said


def test_a_copy_that_is_gone_is_a_sentence(run):
    run.config_copy.unlink()
    with pytest.raises(
        RunDirectoryError, match=r"is a class of the run's config\.py, which is missing"
    ):
        run.read_config()


def test_a_copy_that_fails_is_a_sentence(stored, tmp_path):
    copy = tmp_path / "config.py"
    copy.write_text("import a_package_that_is_not_installed\n")
    stored["source"]["sha256"] = Source("own.py", copy.read_bytes()).sha256
    for _ in range(2):  # half a module is none
        with pytest.raises(ConfigError, match=r"ModuleNotFoundError: .*; it defines network"):
            read(stored, copy)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_copy_has_the_bytes_of_the_file_in_any_encoding(tmp_path, encoding, end):
    text = (FORMAT1 / "config.py").read_text()
    text = f"# -*- coding: {encoding} -*-\n{text}".replace("runs/format1", "runs/für")
    path = tmp_path / "own.py"
    path.write_bytes(text.replace("\n", end).encode(encoding))
    config = configs.load(path)
    assert config.workdir == "runs/für"
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.make(config)
    assert run.config_copy.read_bytes() == path.read_bytes()
    assert run.read_config() == config
    assert configs.load(run.config_copy).workdir == "runs/für"


def test_check_owner_executes_nothing_and_compares_what_decides(tmp_path):
    """The copy and the file differ in get_config alone, then in a class."""
    path, text = tmp_path / "own.py", (FORMAT1 / "config.py").read_text()
    path.write_text(text)
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.make(configs.load(path))
    path.write_text(text.replace("seed=7,", "seed=6 + 1,  # the same"))
    again = configs.load(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddpm_jax.config.stored.execute", None)
        patch.setattr("ddpm_jax.config.source.execute", None)
        run.check_owner(again)
    path.write_text(text.replace("nn.Dense(self.width)(x_t)", "nn.Dense(self.width)(-x_t)"))
    with pytest.raises(RunDirectoryError) as caught:
        run.check_owner(configs.load(path))
    said = str(caught.value)
    assert said.startswith("own.py has changed since the run ")
    assert f"`ddpm-jax train {run.config_copy}` continues with the run's copy" in said
    run.check_owner(configs.load(run.config_copy))
