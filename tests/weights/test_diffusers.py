"""Folders of diffusers that cannot be read, each with the sentence that says why."""

import json
import shutil

import numpy as np
import pytest

from ddpm_jax.models import UNet
from ddpm_jax.weights import LazyArray, Recipe, WeightsError, from_diffusers, to_diffusers
from ddpm_jax.weights.safetensors_files import open_safetensors, write_safetensors
from ddpm_jax.weights.weights import expected_shapes

NETWORK = UNet(
    channels=8,
    multipliers=(1, 2),
    num_blocks=1,
    attention_resolutions=(),
    attention_levels=(1,),
    norm_groups=4,
    dropout=0.0,
)
SHAPE = (8, 8, 3)
CHAIN = Recipe("linear", {"num_steps": 20})


def random_arrays(network=NETWORK, shape=SHAPE):
    rng = np.random.default_rng(0)
    arrays = {
        path: rng.normal(size=shape).astype(np.float32)
        for path, shape in expected_shapes(network, shape).items()
    }
    return {path: LazyArray(a.shape, lambda a=a: a) for path, a in arrays.items()}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A pipeline's folder, written by this library."""
    folder = tmp_path_factory.mktemp("diffusers") / "pipeline"
    to_diffusers(
        folder, NETWORK, SHAPE, random_arrays(), chain=CHAIN, predicts="eps", variance="small"
    )
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A copy to be changed."""
    return shutil.copytree(original, tmp_path / "pipeline")


def change(path, /, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(folder, sentence, **kwargs):
    with pytest.raises(WeightsError, match=sentence) as error:
        from_diffusers(folder, **kwargs)
    assert "\n" not in str(error.value)


def test_what_is_written_is_read(folder):
    weights = from_diffusers(str(folder))
    assert (weights.image_shape, weights.predicts, weights.variance) == (SHAPE, "eps", "small")
    assert weights.schedule.num_steps == 20
    assert weights.source["kind"] == "diffusers"
    assert list(weights.source["sha256"]) == ["unet/diffusion_pytorch_model.safetensors"]
    for path, array in random_arrays().items():
        np.testing.assert_array_equal(weights.arrays["ema"][path].read(), array.read())


# ---- the network's options


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("center_input_sample", True, r"images of \[0, 1\]"),
        ("time_embedding_type", "fourier", "Fourier or learned times"),
        ("time_embedding_dim", 64, "4 times the first width, 32"),
        ("mid_block_type", None, "without middle blocks"),
        ("mid_block_scale_factor", 1.4, "with a scale"),
        ("downsample_padding", 2, "0 or 1"),
        ("downsample_type", "fir", "'conv' or 'resnet'"),
        ("act_fn", "gelu", "other than 'silu'"),
        ("attention_head_dim", 3, "divide the width 16"),
        ("attention_head_dim", "8", "a whole number"),
        ("attn_norm_num_groups", 5, "divide the width 16"),
        (
            "norm_num_groups",
            3,
            "norm_num_groups, 3, has to divide each",
        ),
        ("norm_num_groups", None, "a whole number"),
        ("norm_eps", "1e-5", "a number, 0 or more"),
        ("resnet_time_scale_shift", "spatial", "spatial norms"),
        ("class_embed_type", "timestep", "see num_class_embeds"),
        ("num_class_embeds", -3, "a whole number, 1 or more"),
        ("out_channels", 5, "in_channels, 3, or twice"),
        ("block_out_channels", [9, 18], "even"),
        ("block_out_channels", 8, "a list"),
        ("block_out_channels", [8, 16, 16], r"down_block_types .* has to have 3 entries"),
        ("layers_per_block", [1, 2], "a whole number"),
        ("freq_shift", 4, "below half of the first width, 4"),
        ("sample_size", None, "give the images' size as image_size"),
        ("sample_size", 9, "multiples of 2 for a network of 2 levels"),
        ("dropout", 1.0, "below 1"),
        ("rotary", True, "rotary is True; this option of UNet2DModel is not known"),
        ("_class_name", "AutoencoderKL", "of a AutoencoderKL, an autoencoder"),
        ("_class_name", "UNet2DConditionModel", "attends to a text; supported is UNet2DModel"),
        ("_class_name", "Other", "Other, not known here"),
    ],
)
def test_an_option_without_a_counterpart_is_named(folder, key, value, sentence):
    change(folder / "unet" / "config.json", **{key: value})
    if key == "_class_name":
        refused(folder, sentence)
    else:
        refused(folder, rf"unet/config\.json.*{sentence}")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("CrossAttnDownBlock2D", "needs a text encoder"),
        ("AttnSkipDownBlock2D", "FIR filters"),
        ("SkipDownBlock2D", "FIR filters"),
        ("DownEncoderBlock2D", "autoencoder"),
        ("AttnDownEncoderBlock2D", "autoencoder"),
        ("KDownBlock2D", "upscaler"),
        ("UpBlock2D", "not known here"),
        ("Down", "not known here"),
    ],
)
def test_a_block_without_a_counterpart_is_named(folder, kind, reason):
    change(folder / "unet" / "config.json", down_block_types=[kind, "AttnDownBlock2D"])
    refused(folder, f"{kind} is not supported: .*{reason}")


def test_keys_that_change_nothing_are_read_over(folder):
    average = {"decay": 0.9, "optimization_step": 7, "power": 0.75, "_name_or_path": "x"}
    change(folder / "unet" / "config.json", a_later_option=None, num_train_timesteps=5, **average)
    assert from_diffusers(folder).network == NETWORK.clone(null_class=True)


def test_missing_keys_have_the_defaults_of_diffusers(folder):
    path = folder / "unet" / "config.json"
    values = json.loads(path.read_text())
    for key in ("norm_eps", "downsample_padding", "flip_sin_to_cos", "freq_shift"):
        del values[key]
    path.write_text(json.dumps(values))
    network = from_diffusers(folder).network
    assert network.norm_epsilon == 1e-5
    assert network.symmetric_padding
    assert network.cosine_first
    assert network.frequency_shift == 0.0


# ---- folders


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("StableDiffusionPipeline", "StableDiffusionPipeline, which draws latents of a text"),
        ("StableDiffusionXLPipeline", "draws latents of a text"),
        ("LDMPipeline", "latents of an autoencoder"),
        ("DiTPipeline", "latents of an autoencoder"),
        ("ScoreSdeVePipeline", "a chain that explodes"),
        ("KarrasVePipeline", "a chain that explodes"),
        ("FluxPipeline", "FluxPipeline, which is not known here"),
        (None, "is of a None"),
    ],
)
def test_another_pipeline_is_named(folder, kind, sentence):
    change(folder / "model_index.json", _class_name=kind)
    refused(folder, sentence)


def test_what_is_no_folder_of_diffusers_is_a_sentence(folder, tmp_path):
    refused(tmp_path / "missing", "does not exist")
    refused(folder / "model_index.json", "is not a folder")
    refused(folder / "scheduler", r"neither model_index\.json")
    (folder / "scheduler" / "scheduler_config.json").unlink()
    refused(folder, r"scheduler_config\.json' does not exist")
    (folder / "unet" / "config.json").write_text("{")
    refused(folder, r"config\.json' is not JSON")
    (folder / "unet" / "config.json").unlink()
    refused(folder, r"unet/config\.json' does not exist")


def test_a_network_alone_needs_its_chain(folder):
    unet = folder / "unet"
    refused(unet, "without a scheduler; give chain and predicts")
    refused(unet, "give predicts", chain=CHAIN)
    weights = from_diffusers(unet, chain=CHAIN, predicts="v")
    assert (weights.chain, weights.predicts, weights.variance) == (CHAIN, "v", "small")


def test_arguments_go_before_what_the_folder_says(folder):
    sampler, cosine = Recipe("heun", {}), Recipe("cosine", {"num_steps": 5})
    weights = from_diffusers(folder, chain=cosine, variance="large", sampler=sampler, image_size=16)
    assert (weights.chain, weights.predicts, weights.variance) == (cosine, "eps", "large")
    assert (weights.sampler, weights.image_shape) == (sampler, (16, 16, 3))


def test_a_variance_that_is_not_the_networks_is_a_sentence(folder):
    refused(folder, "'learned_range' needs twice as many", variance="learned_range")


# ---- files of parameters


def rewrite(folder, change):
    """The file of parameters after a change of its arrays."""
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    arrays, metadata = open_safetensors(path)
    write_safetensors(path.with_name("new"), change(arrays), metadata)
    path.with_name("new").replace(path)


def test_keys_and_parameters_that_are_left_are_both_listed(folder):
    def swap(arrays):
        return {name.replace("conv_in.bias", "conv_in.shift"): a for name, a in arrays.items()}

    rewrite(folder, swap)
    refused(folder, "does not have: input/bias; .* does not use: conv_in.shift")


def test_the_file_of_another_network_is_a_sentence(folder, tmp_path):
    other = NETWORK.clone(multipliers=(1, 3))
    to_diffusers(
        tmp_path / "other",
        other,
        SHAPE,
        random_arrays(other),
        chain=CHAIN,
        predicts="eps",
        variance="small",
    )
    name = "unet/diffusion_pytorch_model.safetensors"
    shutil.copy(tmp_path / "other" / name, folder / name)
    refused(folder, "of another shape: down_1_0/conv_0/")


def test_missing_and_damaged_files_are_sentences(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    refused(folder, "is not a safetensors file, or it is damaged")
    file.rename(file.with_name("diffusion_pytorch_model.bin"))
    refused(folder, "is not a dict of tensors")
    file.with_name("diffusion_pytorch_model.bin").rename(file.with_name("model.ckpt"))
    refused(folder, r"no file of parameters.*it has config\.json, model\.ckpt")


def test_one_variant_is_taken_and_of_several_one_has_to_be_named(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".ema.safetensors"))
    assert list(from_diffusers(folder).source["sha256"]) == [
        "unet/diffusion_pytorch_model.ema.safetensors"
    ]
    shutil.copy(file.with_suffix(".ema.safetensors"), file.with_suffix(".fp16.safetensors"))
    refused(folder, "has the variants ema, fp16; give one")
    assert from_diffusers(folder, variant="fp16").network == NETWORK
    refused(folder, "no file of parameters of the variant 'x'", variant="x")
    # A file without a variant goes before those with one, whatever its format.
    file.with_suffix(".bin").write_bytes(b"")
    refused(folder, "is not a dict of tensors")


def test_an_index_with_a_name_outside_of_the_folder_is_a_sentence(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_name("one"))
    index = file.with_name("diffusion_pytorch_model.safetensors.index.json")
    index.write_text(json.dumps({"weight_map": {"conv_in.bias": "../unet/one"}}))
    refused(folder, "has to be a file beside the index")
