"""`config.EDM`, a network with another one inside: on the command line, stored, refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny
from rich.console import Console

from ddpm_jax import config as configs
from ddpm_jax import models
from ddpm_jax.cli import main
from ddpm_jax.cli.arguments import parse_config
from ddpm_jax.config import EDM, ConfigError, DiT, UNet
from ddpm_jax.config.values import effects
from ddpm_jax.experiment import build, image_spec_of, make_network, train
from ddpm_jax.plan import advice

DIGITS = "configs/digits.py"
SMALL = UNet(channels=4, multipliers=(1,), num_blocks=1, attention_resolutions=(), norm_groups=2)


def config_with(network, **members):
    return dataclasses.replace(tiny.get_config(), network=network, **members)


def parse(*arguments):
    return parse_config("train", [DIGITS, *arguments])


class TestCommandLine:
    def test_fields_of_the_network_inside_are_set(self):
        network = parse("--network", "edm", "--network.network.channels", "32").network
        assert network == EDM(network=UNet(channels=32), predicts="eps")  # which the digits have

    def test_the_network_inside_is_replaced(self):
        arguments = ["--network", "edm", "--network.network", "dit", "--network.network.depth", "3"]
        network = parse(
            *arguments, "--network.sigma-data", "0.7", "--network.predicts", "v"
        ).network
        assert network == EDM(network=DiT(depth=3), sigma_data=0.7, predicts="v")

    def test_the_table_has_the_rows_of_the_network_inside(self, capsys):
        small = ["--network.network.width", "8", "--network.network.heads", "2"]
        inside = ["--network.network", "dit", "--network.network.depth", "2", *small]
        assert main(["inspect", DIGITS, "--network", "edm", *inside]) == 0
        out = capsys.readouterr().out
        for part in ("block_0", "block_1", "TransformerBlock", "Preconditioned"):
            assert part in out

    def test_an_unknown_network_inside_is_named_with_the_nearest(self, capsys):
        code = main(["inspect", DIGITS, "--network", "edm", "--network.network", "ditt"])
        assert code == 2
        assert "--network.network is 'ditt'" in capsys.readouterr().err


def test_it_comes_back_from_json():
    config = config_with(EDM(network=DiT(size="B", patch=4), sigma_data=0.3, predicts="v"))
    stored = json.loads(json.dumps(configs.to_json(config)))
    assert configs.from_json(stored) == config
    assert configs.flat(stored)["network.network"] == "DiT"
    assert effects(config)["network.network.dropout"] is configs.Affects.TRAINING


def test_its_module_has_the_schedule_and_what_it_declares():
    config = config_with(EDM(network=SMALL, predicts="v", variance="learned_range", classes=10))
    model = make_network(config, image_spec_of(config))
    assert isinstance(model, models.Preconditioned)
    assert model.schedule == configs.make_schedule(config.schedule)
    assert (model.predicts, model.sigma_data) == ("v", 0.5)
    assert (model.network.learned_variance, model.network.num_classes) == (True, 10)
    assert EDM(network=DiT(dtype="bfloat16")).compute_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (EDM(network=EDM()), "network.network is an EDM; it has to be another network"),
        (
            EDM(network=dataclasses.replace(SMALL, classes=10)),
            "network.network.classes is 10 and network.classes is 0; only the second counts",
        ),
        (
            EDM(network=dataclasses.replace(SMALL, predicts="v")),
            "network.network.predicts is v and network.predicts is x0; only the second counts",
        ),
        (
            EDM(network=dataclasses.replace(SMALL, variance="large"), variance="learned_range"),
            "network.network.variance is large and network.variance is learned_range",
        ),
        (
            EDM(network=DiT(heads=5)),
            "network.network.heads is 5; it has to be a divisor of network",
        ),
        (EDM(sigma_data=0.0), "network.sigma_data is 0.0; it has to be positive and finite"),
    ],
)
def test_what_cannot_be_is_refused(network, said):
    with pytest.raises(ConfigError, match=f"^{said}"):
        configs.validate(config_with(network))


def test_what_the_network_inside_may_say_as_well_is_taken():
    inside = dataclasses.replace(SMALL, classes=10, predicts="x0")
    configs.validate(config_with(EDM(network=inside, classes=10)))


def test_a_chain_that_ends_without_signal_is_refused():
    bent = configs.Cosine(num_steps=8, zero_terminal_snr=True)
    with pytest.raises(ConfigError, match="network is an EDM and the schedule leaves no signal"):
        configs.validate(config_with(EDM(network=SMALL), schedule=bent))
    by_time = config_with(EDM(network=SMALL, predicts="flow", noise_input="time"), schedule=bent)
    configs.validate(by_time)
    assert make_network(by_time, image_spec_of(by_time)).noise_input == "time"


@pytest.mark.parametrize("process", [configs.Blurring(), configs.EqualSNR()])
def test_a_process_of_several_levels_of_noise_is_refused(process):
    config = config_with(EDM(network=SMALL), process=process)
    with pytest.raises(ConfigError, match="the process is a Spectral, so take isotropic"):
        make_network(config, image_spec_of(config))


def test_images_that_the_network_inside_cannot_have_are_refused_by_its_fields():
    config = config_with(EDM(network=DiT(patch=3)))
    with pytest.raises(ConfigError, match=r"^network\.network\.patch is 3; it has to divide"):
        make_network(config, image_spec_of(config))


def test_less_memory_is_that_of_the_network_inside():
    config = config_with(EDM(network=DiT(remat="attention")))
    (change,), *_ = advice.changes(config, 8)
    assert str(change) == "--network.network.remat blocks"
    assert advice.apply(config, change).network == EDM(network=DiT(remat="blocks"))


@pytest.mark.thorough
def test_it_trains_saves_and_is_measured(tmp_path):
    config = config_with(
        EDM(network=SMALL),
        workdir=str(tmp_path),
        objective=configs.Simple(),
        mesh=configs.Jit(data=1),
    )
    results = train(config, console=Console(quiet=True))
    assert np.isfinite(results["bits_per_dim"])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    shapes = jax.tree.leaves(build(config).abstract_state.params)
    inner = jax.tree.leaves(build(config_with(SMALL)).abstract_state.params)
    assert [leaf.shape for leaf in shapes] == [leaf.shape for leaf in inner]
