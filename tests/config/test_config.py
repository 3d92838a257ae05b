"""Configs: what is refused and how, and that they survive being stored."""

import dataclasses
import json
import math

import chex
import jax
import numpy as np
import pytest
from paths import ROOT

from ddpm_jax import config as configs
from ddpm_jax import schedules
from ddpm_jax.config import (
    DDIM,
    EMA,
    Adam,
    Affects,
    Ancestral,
    BitsPerDim,
    Blurring,
    Config,
    ConfigError,
    Correlated,
    CosineDecay,
    DPMSolverPP,
    EqualSNR,
    Hybrid,
    Jit,
    Linear,
    LinearLogSNR,
    NoLogger,
    Pmap,
    PostHocEMA,
    StochasticHeun,
    Stratified,
    Train,
    UNet,
)
from ddpm_jax.data import ImageSpec
from ddpm_jax.experiment import make_network
from ddpm_jax.models import init_params


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_every_shipped_config_is_valid_and_says_how_to_run_it(path):
    config = configs.load(path)
    configs.validate(config)
    assert f"ddpm-jax train {path.stem}" in path.read_text()
    assert configs.from_json(json.loads(json.dumps(configs.to_json(config)))) == config


@pytest.mark.parametrize(
    ("name", "size", "parameters"),
    [
        ("cifar10", 32, 35_746_307),
        ("cifar10_improved", 32, 52_546_438),
        ("imagenet64", 64, 121_063_942),
    ],
)
def test_networks_of_papers_have_the_size_that_their_configs_say(name, size, parameters):
    path = ROOT / "configs" / f"{name}.py"
    config = configs.load(path)
    spec = ImageSpec(name, (size, size, 3), levels=256, classes=None, class_counts=None)
    model = make_network(config, spec)
    shapes = jax.eval_shape(lambda key: init_params(model, key, (size, size, 3)), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters
    assert f"{parameters:,}" in path.read_text()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            Config(schedule=Linear(num_steps=1)),
            "schedule: num_steps is 1; a schedule has at least T = 2 steps",
        ),
        (
            Config(schedule=Linear(beta_max=1.5)),
            r"schedule: beta_max is 1\.5; it has to be inside \(0, 1\)",
        ),
        (Config(schedule=Linear(beta_min=0.0)), "beta_min is 0.0"),
        (Config(schedule=Linear(num_steps=10**9)), "at most 1,000,000"),
        (
            Config(process=Blurring(max_blur=-1.0)),
            "process.max_blur is -1.0; it has to be 0 or more, in pixels",
        ),
        (Config(process=Blurring(max_blur=math.inf)), "process.max_blur is inf"),
        (
            Config(process=Blurring(min_scale=0.0)),
            r"process.min_scale is 0.0; it has to be in \(0, 1\]",
        ),
        (Config(process=Blurring(min_scale=1.5)), "process.min_scale is 1.5"),
        (
            Config(process=Correlated(correlation_length=-0.5)),
            "process.correlation_length is -0.5",
        ),
        (
            Config(process=Correlated(correlation_length=math.nan)),
            "process.correlation_length is nan",
        ),
        (
            Config(process=EqualSNR(floor=0.0)),
            r"process.floor is 0.0; it has to be in \(0, 1\]",
        ),
        (Config(network=UNet(channels=7)), "network.channels is 7; it has to be an even number"),
        (Config(network=UNet(multipliers=())), "network.multipliers"),
        (Config(network=UNet(multipliers=(1, 0))), "network.multipliers"),
        (Config(network=UNet(num_blocks=0)), "network.num_blocks is 0"),
        (
            Config(network=UNet(dropout=1.0)),
            r"network.dropout is 1.0; it has to be in \[0, 1\)",
        ),
        (
            Config(network=UNet(norm_groups=33)),
            "network.norm_groups is 33; it has to be a divisor",
        ),
        (
            Config(network=UNet(heads=3)),
            "network.heads is 3; it has to be a divisor of the channels of each level with",
        ),
        (
            Config(network=UNet(attention_kernel="cudnn")),
            "network.attention_kernel is cudnn; .*'xla' if",
        ),
        (
            Config(network=UNet(variance="learned_range")),
            "objective is Simple, which does not train the variance",
        ),
        (Config(network=UNet(classes=-1)), "network.classes is -1; it has to be 0 or more"),
        (Config(objective=Hybrid()), "objective is Hybrid and network.variance is 'small'"),
        (Config(optimizer=Adam(learning_rate=0.0)), "optimizer.learning_rate"),
        (Config(optimizer=Adam(learning_rate=math.inf)), "positive and finite"),
        (Config(optimizer=Adam(warmup_steps=-1)), "optimizer.warmup_steps"),
        (Config(optimizer=Adam(clip_norm=0.0)), "optimizer.clip_norm"),
        (Config(optimizer=Adam(b2=1.0)), "optimizer.b2"),
        (Config(optimizer=Adam(decay=CosineDecay(final=1.0))), "optimizer.decay.final is 1.0"),
        (Config(averages=EMA(decays=(0.9, 1.0))), "averages.decays"),
        (Config(averages=EMA(decays=())), "averages.decays"),
        (Config(averages=PostHocEMA(widths=(0.05, 0.3))), "averages.widths"),
        (Config(averages=PostHocEMA(every=0)), "averages.every is 0; it has to be 1 or more"),
        (Config(train=Train(steps=0)), "train.steps is 0; it has to be 1 or more"),
        (Config(train=Train(batch_size=0)), "train.batch_size"),
        (
            Config(train=Train(accumulate=3)),
            "train.accumulate is 3; it has to be a divisor of .* 128",
        ),
        (Config(train=Train(skip_bad_steps=-1)), "train.skip_bad_steps"),
        (Config(train=Train(save_every=0)), "train.save_every"),
        (Config(train=Train(keep_latest=0)), "train.keep_latest"),
        (Config(mesh=Jit(data=0)), "mesh.data is 0; it has to be 1 or more, or -1"),
        (Config(mesh=Jit(fsdp=0)), "mesh.fsdp is 0"),
        (
            Config(mesh=Jit(reduction="bfloat16")),
            "mesh.reduction is bfloat16; it has to be 'float32' where",
        ),
        (Config(mesh=Pmap(fsdp=2)), "mesh.fsdp is 2; it has to be 1 with the mesh Pmap"),
        (Config(evaluation=BitsPerDim(num_samples=0)), "evaluation.num_samples"),
        (
            Config(evaluation=BitsPerDim(likelihood_times=1001)),
            "evaluation.likelihood_times is 1001; it has to be at most schedule.num_steps, 1000",
        ),
        (
            Config(sampler=Ancestral(steps=1001)),
            "sampler.steps is 1001; it has to be at most schedule.num_steps, 1000",
        ),
        (Config(sampler=Ancestral(steps=0)), "sampler.steps is 0"),
        (Config(sampler=DDIM(guidance=2.0)), "sampler.guidance is 2.0; it has to be 1 if"),
        (Config(sampler=DPMSolverPP(order=4)), "sampler.order is 4; it has to be 1 to 3"),
        (
            Config(sampler=StochasticHeun(sigma_min=2.0, sigma_max=1.0)),
            "sampler.sigma_max is 1.0; it has to be at least sampler.sigma_min, 2.0",
        ),
        (Config(sampler=Ancestral(rho=0.0)), "sampler.rho is 0.0; it has to be positive"),
        (Config(seed=-1), "seed is -1"),
        (
            Config(schedule=Linear(zero_terminal_snr=True)),
            "network.predicts: predicts is 'eps', and the schedule",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_value_that_cannot_work_is_named(config, said):
    with pytest.raises(ConfigError, match=said) as caught:
        configs.validate(config)
    assert "\n" not in str(caught.value)


def test_stratified_times_have_to_fit_their_lattice():
    config = Config(
        times=Stratified(), schedule=Linear(num_steps=500_000), train=Train(batch_size=4096)
    )
    with pytest.raises(ConfigError, match=r"train\.batch_size is 4096; .* below 2\^30"):
        configs.validate(config)


def test_log_snr_has_to_fall():
    with pytest.raises(ConfigError, match="log_snr_max has to be the larger"):
        configs.validate(Config(schedule=LinearLogSNR(log_snr_max=-9.0)))


NAMED_SCHEDULES = [
    kind
    for kind in configs.members(configs.Schedule)
    if kind not in (configs.FromBetas, configs.LearnedLogSNR)
]
OWN_ENDS = (configs.SubVariancePreserving, configs.VarianceExploding, configs.RectifiedFlow)
"""Schedules that do not preserve variance, and whose end is chosen where they are made."""


@pytest.mark.parametrize(
    ("kind", "zero_terminal_snr"),
    [(kind, False) for kind in NAMED_SCHEDULES]
    + [(kind, True) for kind in NAMED_SCHEDULES if kind not in OWN_ENDS],
)
def test_every_schedule_is_the_function_with_its_defaults(kind, zero_terminal_snr):
    member = kind(num_steps=20, zero_terminal_snr=zero_terminal_snr)
    made = configs.make_schedule(member)
    name = configs.member_name(kind).replace("-", "_").removesuffix("_beta")
    plain = getattr(schedules, name)(20, *((0.02,) if name == "constant" else ()))
    chex.assert_trees_all_equal(
        made, schedules.zero_terminal_snr(plain) if zero_terminal_snr else plain
    )


@pytest.mark.parametrize("kind", OWN_ENDS)
@pytest.mark.parametrize("change", [{"zero_terminal_snr": True}, {"shift_resolution": 128}])
def test_what_does_not_preserve_variance_is_not_bent_afterwards(kind, change):
    with pytest.raises(ConfigError, match="schedule does not preserve variance"):
        configs.make_schedule(kind(num_steps=20, **change))


def test_betas_of_somebody_else_are_a_schedule_of_as_many_steps():
    member = configs.validate(Config(schedule=configs.FromBetas((0.1, 0.2, 0.5)))).schedule
    assert member.num_steps == 3
    made = configs.make_schedule(member)
    np.testing.assert_allclose(made.alpha_bar, [0.9, 0.72, 0.36], rtol=1e-6)
    assert configs.from_json(configs.to_json(Config(schedule=member))).schedule == member


@pytest.mark.parametrize(
    ("member", "sentence"),
    [
        (configs.FromBetas((0.1, 0.2), num_steps=3), "num_steps is 3, and betas has 2 numbers"),
        (configs.FromBetas((0.1, 1.0, 0.2)), r"betas\[1\] is 1"),
        (configs.FromBetas((0.1,)), "num_steps"),
    ],
)
def test_betas_that_are_no_schedule_are_a_sentence(member, sentence):
    with pytest.raises(ConfigError, match=f"schedule: {sentence}"):
        configs.validate(Config(schedule=member))


def test_a_schedule_is_shifted_before_it_is_bent():
    member = Linear(num_steps=20, shift_resolution=128, shift_reference=32, zero_terminal_snr=True)
    shifted = schedules.shifted(schedules.linear(20), resolution=128, reference=32)
    expected = schedules.zero_terminal_snr(shifted)
    chex.assert_trees_all_equal(configs.make_schedule(member), expected)


def test_differences_are_named_by_their_field():
    changed = Config(network=UNet(multipliers=(1, 2)), train=Train(steps=7))
    first, second = configs.to_json(Config()), configs.to_json(changed)
    assert configs.differences(first, second, changed) == [
        ("network.multipliers", [1, 2, 2, 2], [1, 2], Affects.MODEL),
        ("train.steps", 800_000, 7, Affects.LENGTH),
    ]
    assert configs.differences(second, second, changed) == []


def test_a_member_or_field_that_an_older_config_lacks_has_its_default():
    older, newer = configs.to_json(Config()), configs.to_json(Config(logger=NoLogger()))
    del older["logger"], older["optimizer"]["decay"], older["train"]["log_every"]
    assert configs.differences(older, configs.to_json(Config()), Config()) == []
    (difference,) = configs.differences(older, newer, Config())
    assert difference == ("logger", "TensorBoard", "NoLogger", Affects.REPORTS)


def test_of_members_of_two_classes_the_class_alone_differs():
    first, second = Config(sampler=DDIM(eta=0.5)), Config(sampler=DPMSolverPP(order=1))
    nested = dataclasses.replace(second, optimizer=Adam(decay=CosineDecay()))
    for one, other, config in [(first, nested, first), (first, nested, nested)]:
        found = configs.differences(configs.to_json(one), configs.to_json(other), config)
        assert found == [
            ("optimizer.decay", "ConstantDecay", "CosineDecay", Affects.TRAINING),
            ("sampler", "DDIM", "DPMSolverPP", Affects.REPORTS),
        ]


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
