"""Families and members as they are declared: found by name, stored, and checked, all of them."""

import dataclasses
import json
import re

import pytest

from ddpm_jax import config as configs
from ddpm_jax.config import Config, ConfigError, Member

SMALL = Config(
    network=configs.UNet(4, (1,), 1, (), norm_groups=2),
    schedule=configs.Linear(num_steps=20),
    train=configs.Train(batch_size=8),
)
FAMILIES = configs.families()
MEMBERS = [(name, kind) for name, family in FAMILIES.items() for kind in configs.members(family)]
COMPLETE = [
    (name, kind)
    for name, kind in MEMBERS
    if all(field.default is not dataclasses.MISSING for field in dataclasses.fields(kind))
]
NEEDS_ANOTHER = {
    "LearnedLogSNR": "objective is Simple",
    "RectifiedFlow": "network.predicts: predicts is 'eps'",
    "Hybrid": "network.variance is 'small'",
}
"""Members whose defaults do not fit into a small config, and what the refusal says of it."""


def with_member(dotted, member):
    """`SMALL` with a member in its place."""
    name, _, inner = dotted.partition(".")
    if inner:
        member = dataclasses.replace(getattr(SMALL, name), **{inner: member})
    return dataclasses.replace(SMALL, **{name: member})


def label(value):
    return value if isinstance(value, str) else value.__name__


@pytest.mark.parametrize(("name", "kind"), COMPLETE, ids=label)
def test_every_member_comes_back_from_json_and_fits_or_says_why_not(name, kind):
    config = with_member(name, kind())
    stored = json.loads(json.dumps(configs.to_json(config)))
    assert configs.from_json(stored) == config
    assert configs.flat(stored)[name] == kind.__name__
    if kind.__name__ in NEEDS_ANOTHER:
        with pytest.raises(ConfigError, match=re.escape(NEEDS_ANOTHER[kind.__name__])):
            configs.validate(config)
    else:
        assert configs.validate(config) == config


@pytest.mark.parametrize(("name", "kind"), MEMBERS, ids=label)
def test_every_member_is_found_by_its_name_however_it_is_written(name, kind):
    family, written = FAMILIES[name], configs.member_name(kind)
    for text in (written, written.upper(), written.replace("-", "_"), kind.__name__):
        assert configs.find_member(family, text, f"--{name}") is kind
    assert written.replace("-", "") == kind.__name__.lower()


@pytest.mark.parametrize(("name", "kind"), MEMBERS, ids=label)
def test_every_member_says_what_it_is(name, kind):
    assert issubclass(kind, Member)
    assert kind.__doc__
    assert not kind.__doc__.startswith(f"{kind.__name__}(")
    assert kind.__name__ in vars(configs)


def test_the_name_of_the_family_may_be_left_out():
    decay = FAMILIES["optimizer.decay"]
    assert configs.find_member(decay, "cosine", "--optimizer.decay") is configs.CosineDecay
    threshold = FAMILIES["sampler.threshold"]
    assert configs.find_member(threshold, "no", "--sampler.threshold") is configs.NoThreshold


def test_an_unknown_member_names_all_and_the_nearest():
    with pytest.raises(ConfigError) as caught:
        configs.find_member(FAMILIES["sampler"], "dpm-solver", "--sampler")
    said = str(caught.value)
    assert said.startswith("--sampler is 'dpm-solver'; it has to be one of ancestral, ddim, ")
    assert said.endswith("(did you mean dpm-solver-pp?)")


def test_names_of_the_flat_namespace_are_of_one_module():
    """`config.Name` is what its module calls so: no later import replaces it."""
    for name in dir(configs):
        value = getattr(configs, name)
        home = getattr(value, "__module__", "") or ""
        if isinstance(value, type) and home.startswith("ddpm_jax.config."):
            assert value.__name__ == name
    exported = [
        name
        for home in {family.__module__ for family in FAMILIES.values()}
        for name in __import__(home, fromlist=["__all__"]).__all__
    ]
    assert len(exported) == len(set(exported))
