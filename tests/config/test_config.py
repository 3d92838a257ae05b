"""Configs: what is refused and how, and that they survive being stored."""

import dataclasses
import json
import math
import operator
import typing

import chex
import jax
import pytest
from paths import ROOT

from ddpm_jax import config as configs
from ddpm_jax import schedules
from ddpm_jax.config import Config, ConfigError, ScheduleConfig, rules
from ddpm_jax.experiment import make_model
from ddpm_jax.models import init_params


def with_value(field, value, config=None):
    """`config` with the dotted `field` changed."""
    config = config or Config()
    section, _, name = field.rpartition(".")
    if not section:
        return dataclasses.replace(config, **{name: value})
    changed = dataclasses.replace(getattr(config, section), **{name: value})
    return dataclasses.replace(config, **{section: changed})


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_every_shipped_config_is_valid_and_says_how_to_run_it(path):
    config = configs.load(path)
    configs.validate(config)
    assert f"ddpm-jax train configs/{path.name}" in path.read_text()
    assert configs.from_json(json.loads(json.dumps(configs.to_json(config)))) == config


@pytest.mark.parametrize(
    ("name", "size", "parameters"), [("cifar10", 32, 35_746_307), ("imagenet64", 64, 115_942_150)]
)
def test_networks_of_papers_have_the_size_that_their_configs_say(name, size, parameters):
    model = make_model(configs.load(ROOT / "configs" / f"{name}.py"))
    shapes = jax.eval_shape(lambda key: init_params(model, key, (size, size, 3)), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters
    assert f"{parameters:,}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("schedule.num_steps", 1, "num_steps is 1; a schedule has at least T = 2 steps"),
        ("schedule.beta_max", 1.5, r"beta_max is 1\.5; it has to be inside \(0, 1\)"),
        ("schedule.beta_min", 0.0, "beta_min is 0.0"),
        ("process.max_blur", -1.0, "process.max_blur is -1.0; it has to be 0 or more, in pixels"),
        ("process.max_blur", math.inf, "process.max_blur is inf"),
        ("process.min_scale", 0.0, r"process.min_scale is 0.0; it has to be in \(0, 1\]"),
        ("process.min_scale", 1.5, "process.min_scale is 1.5"),
        ("process.correlation_length", -0.5, "process.correlation_length is -0.5"),
        ("process.correlation_length", math.nan, "process.correlation_length is nan"),
        ("process.floor", 0.0, r"process.floor is 0.0; it has to be in \(0, 1\]"),
        ("model.channels", 7, "model.channels is 7; it has to be an even number"),
        ("model.multipliers", (), "model.multipliers"),
        ("model.multipliers", (1, 0), "model.multipliers"),
        ("model.num_blocks", 0, "model.num_blocks is 0"),
        ("model.dropout", 1.0, r"model.dropout is 1.0; it has to be in \[0, 1\)"),
        ("model.norm_groups", 33, "model.norm_groups is 33; it has to be a divisor"),
        ("model.heads", 3, "model.heads is 3; it has to be a divisor of model.channels"),
        ("model.attention_kernel", "cudnn", "model.attention_kernel is cudnn; .*'xla' where"),
        ("optimizer.learning_rate", 0.0, "optimizer.learning_rate"),
        ("optimizer.warmup_steps", -1, "optimizer.warmup_steps"),
        ("optimizer.clip_norm", 0.0, "optimizer.clip_norm"),
        ("optimizer.b2", 1.0, "optimizer.b2"),
        ("train.steps", 0, "train.steps is 0; it has to be 1 or more"),
        ("train.batch_size", 0, "train.batch_size"),
        ("train.ema_decay", (0.9, 1.0), "train.ema_decay"),
        ("train.ema_decay", (), "train.ema_decay"),
        ("train.accumulate", 3, "train.accumulate is 3; it has to be a divisor of .* 128"),
        ("train.post_hoc_ema", (0.05, 0.3), "train.post_hoc_ema"),
        ("train.skip_bad_steps", -1, "train.skip_bad_steps"),
        ("mesh.data", 0, "mesh.data is 0; it has to be 1 or more, or -1"),
        ("mesh.fsdp", 0, "mesh.fsdp is 0"),
        ("mesh.reduction", "bfloat16", "mesh.reduction is bfloat16; it has to be 'float32' where"),
        ("train.save_every", 0, "train.save_every"),
        ("train.keep_latest", 0, "train.keep_latest"),
        ("evaluation.num_samples", 0, "evaluation.num_samples"),
        ("evaluation.sampler_steps", 1001, "at most schedule.num_steps, 1000"),
        ("evaluation.sampler_steps", 0, "evaluation.sampler_steps is 0"),
        ("seed", -1, "seed is -1"),
        ("optimizer.learning_rate", math.inf, "positive and finite"),
        ("schedule.num_steps", 10**9, "at most 1,000,000"),
        (
            "model.variance",
            "learned_range",
            "train.objective is 'simple', which teaches no variance",
        ),
        ("train.objective", "hybrid", "train.objective is 'hybrid' and variance is 'small'"),
        ("schedule.zero_terminal_snr", True, "model.predicts: predicts is 'eps', and the schedule"),
    ],
)
def test_a_value_that_cannot_work_is_named(field, value, said):
    with pytest.raises(ConfigError, match=said) as caught:
        configs.validate(with_value(field, value))
    assert "\n" not in str(caught.value)


def test_stratified_times_have_to_fit_their_lattice():
    config = with_value("train.times", "stratified", with_value("schedule.num_steps", 500_000))
    config = with_value("train.batch_size", 4096, config)
    with pytest.raises(ConfigError, match=r"train\.batch_size is 4096; .* below 2\^30"):
        configs.validate(config)


def test_log_snr_has_to_fall():
    config = with_value("schedule.name", "linear_log_snr")
    with pytest.raises(ConfigError, match="log_snr_max has to be the larger"):
        configs.validate(with_value("schedule.log_snr_max", -9.0, config))


@pytest.mark.parametrize("name", typing.get_args(typing.get_type_hints(ScheduleConfig)["name"]))
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_every_schedule_has_a_config(name, zero_terminal_snr):
    made = configs.make_schedule(
        ScheduleConfig(name=name, num_steps=20, zero_terminal_snr=zero_terminal_snr)
    )
    plain = getattr(schedules, name)(20)
    chex.assert_trees_all_equal(
        made, schedules.zero_terminal_snr(plain) if zero_terminal_snr else plain
    )


def test_differences_are_named_by_their_field():
    changed = with_value("model.multipliers", (1, 2), with_value("train.steps", 7))
    assert configs.differences(Config(), changed) == [
        ("model.multipliers", [1, 2, 2, 2], [1, 2]),
        ("train.steps", 800_000, 7),
    ]
    assert configs.differences(changed, changed) == []


def test_a_stored_config_of_another_version_is_a_sentence():
    stored = configs.to_json(Config())
    del stored["train"]["steps"]
    with pytest.raises(ConfigError, match=r"misses field train\.steps"):
        configs.from_json(stored)
    stored = configs.to_json(Config()) | {"colour": "blue"}
    with pytest.raises(ConfigError, match="has an unknown field colour"):
        configs.from_json(stored)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "does not exist"),
        ("def get_config(): return 3", "returns a int"),
        ("x = 3", "AttributeError"),
        ("1 / 0", "ZeroDivisionError"),
        ("def broken(", "SyntaxError"),
        ("import sys; sys.exit(3)", "SystemExit"),
    ],
)
def test_a_config_file_that_is_none_is_a_sentence(tmp_path, text, said):
    path = tmp_path / "some.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        configs.load(path)


def test_every_field_of_the_rules_exists():
    for field in rules._RULES:
        operator.attrgetter(field)(Config())
