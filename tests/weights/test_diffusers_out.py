"""Networks that diffusers cannot express, and folders that cannot be written."""

import json

import disks
import flax.linen as nn
import pytest
from test_diffusers import CHAIN, NETWORK, SHAPE, random_arrays

from ddpm_jax.models import UNet
from ddpm_jax.weights import WeightsError, to_diffusers
from ddpm_jax.weights.diffusers_networks import config_of_network


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"multipliers": (2, 2)}, r"multipliers=\(2, 2\)"),
        ({"time_scale": 0.5}, r"time_scale=0\.5: it has to be 1"),
        ({"max_period": 100.0}, r"max_period=100\.0"),
        ({"fourier_features": (7, 8)}, r"fourier_features=\(7, 8\): its input is x_t alone"),
        ({"num_classes": 3}, "null_class=True: it has to be False"),
        ({"learned_variance": True}, "interpolation_range='unit': it has to be 'symmetric'"),
        ({"dropout": 0.1, "dropout_resolutions": (4,)}, r"dropout_resolutions=\(4,\)"),
        ({"resampling": "plain"}, "resampling='plain'"),
        ({"up_resampling": "plain"}, "up_resampling='plain'"),
        ({"heads": 2, "attention_levels": (0, 1)}, "heads=2: its heads are as wide on every"),
        ({"heads": 2, "up_heads": 4}, "up_heads=4"),
        ({"middle_norm_groups": 0}, "middle_norm_groups=0"),
        (
            {
                "multipliers": (1, 1, 1),
                "attention_levels": (0, 1),
                "resampling": ("convolution", "residual", "residual"),
            },
            r"resampling=\(.*\): its levels with attention all resample in one way",
        ),
    ],
)
def test_an_option_that_diffusers_does_not_have_is_named(options, sentence):
    with pytest.raises(WeightsError, match=f"diffusers cannot express {sentence}"):
        config_of_network(NETWORK.clone(**options), (8, 8, 3))


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        ({"heads": 2}, "attention_head_dim", 8),
        ({"heads": 1}, "attention_head_dim", None),
        ({"attention_levels": (), "attention_resolutions": (4,)}, "attention_head_dim", None),
        ({"dropout": 0.1, "dropout_resolutions": (8, 4)}, "dropout", 0.1),
        ({"scale_shift": True}, "attn_norm_num_groups", 4),
        ({"scale_shift": True, "middle_norm_groups": 0}, "attn_norm_num_groups", None),
        ({"multipliers": (1, 2.5)}, "block_out_channels", [8, 20]),
    ],
)
def test_options_that_it_has_by_other_names(options, key, value):
    config = config_of_network(NETWORK.clone(**options), (8, 8, 3))
    assert config[key] == value
    assert config["down_block_types"] == ["DownBlock2D", "AttnDownBlock2D"]


def test_another_network_is_named():
    class Other(UNet):
        pass

    for network in (Other(), nn.Dense(3)):
        with pytest.raises(WeightsError, match=f"the network is a {type(network).__name__}"):
            config_of_network(network, SHAPE)


def write(folder, arrays=None):
    arrays = random_arrays() if arrays is None else arrays
    to_diffusers(folder, NETWORK, SHAPE, arrays, chain=CHAIN, predicts="eps", variance="small")


def test_a_folder_that_is_there_stays_as_it_is(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("out", "link"):
        with pytest.raises(
            WeightsError, match=f"{name} exists; choose a folder that does not exist"
        ):
            write(tmp_path / name)
    assert list((tmp_path / "out").iterdir()) == []


def test_arrays_that_are_not_the_networks_are_a_sentence(tmp_path):
    arrays = random_arrays()
    arrays["other"] = arrays.pop("input/bias")
    with pytest.raises(WeightsError, match=r"does not have: input/bias; .* not use: other"):
        write(tmp_path / "out", arrays)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(disk):
    disks.fill(disk, leaving=30_000)
    with pytest.raises(WeightsError, match="cannot be written: No space left"):
        write(disk / "out")
    assert [path.name for path in disk.iterdir()] == ["other people's"]


def test_folders_above_are_made(tmp_path):
    write(tmp_path / "a" / "b")
    index = json.loads((tmp_path / "a" / "b" / "model_index.json").read_text())
    assert index["_class_name"] == "DDPMPipeline"
