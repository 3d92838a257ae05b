"""Every file in configs/: it loads, has the size it says, is lowered for TPUs, and trains."""

import dataclasses
import importlib
import importlib.util
import json
import math
import re

import jax
import numpy as np
import pytest
from compilers import printed
from networks import make_mixers
from paths import ROOT
from rich.console import Console

from ddpm_jax import experiment as experiments
from ddpm_jax.config import DiT, Jit, from_json, load, to_json, validate
from ddpm_jax.data import Arrays, ImageSet
from ddpm_jax.experiment import RunDirectory, build, image_spec_of
from ddpm_jax.training import Checkpoints

RECIPES = {path.stem: path for path in sorted((ROOT / "configs").glob("*.py"))}
QUICK = ("digits_blurring", "cifar10")
WITH_ITS_NETWORK = ("digits_conditional", "cifar10_improved", "fashion_mnist_dit")
"""Classes are in one of them, dropout and a learned variance in another, attention in all."""
PROGRAM = """
import math, sys
from pathlib import Path
import jax
from ddpm_jax.config import load
from ddpm_jax.experiment import image_spec_of
from ddpm_jax.plan import lower, parse, topologies

devices = topologies.devices(parse(sys.argv[1]))
for path in map(Path, sys.argv[2:]):
    config = load(path)
    lowered = lower.lower_step(config, devices, image_spec_of(config))
    (state, _), _ = lowered.args_info
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    print(path.stem, count, "mhlo.num_partitions = 8" in lowered.as_text()[:200])
"""
each = pytest.mark.parametrize("name", RECIPES)
training = importlib.import_module("ddpm_jax.experiment.train")  # the name is a function's


def synthetic(config, count=4, side=None):
    """Random images of the shape and number of grey levels that the data have, or of `side`."""
    spec = image_spec_of(config)
    shape = spec.shape if side is None else (side, side, spec.shape[2])
    images = np.random.default_rng(0).integers(0, spec.levels, (count, *shape), np.uint8)
    labels = None if spec.classes is None else np.arange(count) % spec.num_classes
    source = Arrays(images, labels, spec.levels)
    return ImageSet(
        spec.name, train=source, held_out=source, levels=spec.levels, classes=spec.classes
    )


@each
def test_it_loads_holds_and_comes_back_from_json(name):
    config = load(RECIPES[name])
    validate(config)
    assert from_json(json.loads(json.dumps(to_json(config)))) == config
    assert config.workdir == f"runs/{name}"


def parameters_said(name):
    """How many parameters its docstring says that it has."""
    (count,) = re.findall(r"(\d[\d,]*)\s+parameters", RECIPES[name].read_text())
    return int(count.replace(",", ""))


@pytest.mark.parametrize("name", QUICK)
def test_it_has_as_many_parameters_as_it_says(name):
    """The others: when they are lowered below."""
    config = load(RECIPES[name])
    params = build(config, images=synthetic(config)).abstract_state.params
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters_said(name)


def reduced(config, workdir):
    """What two CPU cores train in seconds; `test_it_trains_saves_and_draws` names it all."""
    replace = dataclasses.replace
    train = replace(config.train, steps=2, batch_size=2, log_every=1, save_every=2, draw_every=2)
    evaluation = replace(config.evaluation, batch_size=2, num_samples=2, likelihood_times=2)
    if isinstance(config.network, DiT):
        network = replace(config.network, width=8, heads=2, depth=1)
    else:
        network = replace(config.network, channels=8, norm_groups=4, num_blocks=1)
        if len(network.multipliers) > 2:
            ends = network.multipliers[0], network.multipliers[-1]
            network = replace(network, multipliers=ends, attention_resolutions=(8,))
    return replace(
        config,
        network=network,
        train=train,
        sampler=replace(config.sampler, steps=2),
        evaluation=evaluation,
        mesh=Jit(data=1),
        workdir=str(workdir),
    )


@pytest.mark.thorough
@each
def test_it_trains_saves_and_draws(name, tmp_path, monkeypatch):
    """By the command's own way, on random images.

    Same attention, dropout, objective, times, variance, schedule and process, and classes.
    Less: levels (2, of images of 16x16), channels (8, in 4 groups), blocks a level (1), steps (2)
    and images in one (2), steps of the sampler, terms of the likelihood, images drawn and held out
    (2, 2, 2, 4), devices (1). At full size all are lowered below. Most with a Mixer in place of
    the network: what differs between them beside its size is in `WITH_ITS_NETWORK`.
    """
    if name not in WITH_ITS_NETWORK:
        make_mixers(monkeypatch)
    whole = load(RECIPES[name])
    config = reduced(whole, tmp_path / "run")
    levels = len(getattr(whole.network, "multipliers", ()))
    images = synthetic(whole, side=None if levels <= 2 else 16)
    experiment, born = build(config, images=images), []

    def remembered(experiment, *initial):
        state = experiments.initial_state(experiment, *initial)
        born.append(jax.device_get(state.params))
        return state

    monkeypatch.setattr(training, "initial_state", remembered)
    results = experiments.train(config, images=images, console=Console(quiet=True))
    assert results["step"] == 2
    assert math.isfinite(results["bits_per_dim"])
    run = RunDirectory(config.workdir)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    losses = [line[kind] for kind in ("loss", "held_out_loss") for line in lines if kind in line]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    assert (run.pictures / "samples_0000002.png").is_file()
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        state = checkpoints.restore(experiment.abstract_state).state
    for trained in (state.params, state.ema_params):
        assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, trained, born[0])))


@pytest.mark.thorough
def test_every_one_is_lowered_for_eight_tpus():
    """With their parameters, in the environment of a plan. To compile them takes a minute each."""
    expected = [f"{name} {parameters_said(name)} True" for name in RECIPES]
    assert printed("v5e:2x4", PROGRAM, *RECIPES.values()).splitlines() == expected
