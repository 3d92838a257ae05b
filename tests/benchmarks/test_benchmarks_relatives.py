"""The relatives of DDPM that are compared: their configs, and what the tables say."""

import dataclasses
import signal

import pytest

from benchmarks import relatives
from benchmarks.relatives_cases import cases_of
from benchmarks.results import Row
from ddpm_jax import config as configs
from ddpm_jax.errors import UserError
from ddpm_jax.training import InterruptedTraining

BASE = configs.load("digits")
CASES = cases_of(BASE)


@pytest.mark.parametrize("name", CASES)
def test_every_relative_is_a_config_that_works(name):
    assert configs.validate(CASES[name]) == CASES[name]


def test_relatives_share_data_training_and_the_network_inside():
    for config in CASES.values():
        inner = getattr(config.network, "network", config.network)
        assert dataclasses.replace(inner, predicts="eps") == BASE.network
        for field in ("data", "optimizer", "averages", "train", "evaluation", "seed"):
            assert getattr(config, field) == getattr(BASE, field)


def test_another_schedule_has_no_ends_to_share():
    with pytest.raises(UserError, match=r"schedule is Cosine; .* LinearLogSNR"):
        cases_of(dataclasses.replace(BASE, schedule=configs.Cosine()))


def test_more_steps_than_a_chain_has_are_refused_before_training(tmp_path):
    settings = relatives.Settings(steps=(8, 300), out=tmp_path)
    with pytest.raises(UserError, match="--steps has 300; the shortest of these chains has 250"):
        next(relatives.run(settings, print))
    assert not [*tmp_path.iterdir()]


def test_a_config_that_one_relative_cannot_use_is_refused_before_training(tmp_path):
    config = tmp_path / "classes.py"
    config.write_text(
        "import dataclasses\n"
        "from ddpm_jax import config\n"
        "def get_config():\n"
        "    base = config.load('digits_conditional')\n"
        "    return dataclasses.replace(base, sampler=config.Ancestral())\n"
    )
    settings = relatives.Settings(config=config, out=tmp_path / "out")
    with pytest.raises(UserError, match="classes"):
        next(relatives.run(settings, print))


def test_ctrl_c_while_a_relative_trains_ends_the_suite_as_elsewhere(monkeypatch, tmp_path):
    def stopped(config, console):
        raise InterruptedTraining(3, signal.SIGINT)

    monkeypatch.setattr(relatives, "train", stopped)
    monkeypatch.setattr(relatives, "_space", lambda *given: None)
    monkeypatch.setattr(relatives, "_held_out_row", lambda *given: Row({}))
    rows = relatives.run(relatives.Settings(out=tmp_path, steps=(8,)), print)
    next(rows)
    with pytest.raises(KeyboardInterrupt):
        next(rows)


def test_a_sampler_reaches_the_longest_ancestral_chain_within_its_interval():
    def row(sampler, *values):
        distances = {
            steps: [value, value - 1.0, value + 1.0]
            for steps, value in zip((8, 16, 32), values, strict=True)
        }
        return Row({"relative": "a", "sampler": sampler}, numbers={"distances": distances})

    rows = [row("ancestral", 9.0, 5.0, 3.0), row("ddim", 4.5, 3.9, 3.5), row("heun", 9.0, 8.0, 7.0)]
    column = relatives.tables(rows)[1][1]["to reach"]
    assert [column(each) for each in rows] == ["32", "16", "more"]
