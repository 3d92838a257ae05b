"""Files of improved-diffusion and guided-diffusion: flags and shapes; what is refused."""

import math
import pathlib
import re

import numpy as np
import openai_states
import pytest
from torch_pickles import Call, Named, as_file, zip_file

from ddpm_jax import schedules, weights
from ddpm_jax.weights import LazyArray, Recipe, WeightsError, openai
from ddpm_jax.weights.openai_flags import PUBLIC, REFUSED, Flags, parse_flags
from ddpm_jax.weights.openai_tensors import Heads, our_arrays, structure_of
from ddpm_jax.weights.weights import expected_shapes, match_arrays

PATH = pathlib.Path("x.pt")
SMALL = {"image_size": 16, "channel_mult": (1, 2), "num_heads": 4}
"""Flags of `openai_states.shapes()`."""


def file_of(folder, state, name="model.pt", **kwargs):
    path = folder / name
    path.write_bytes(as_file(state, **kwargs))
    return path


@pytest.fixture(scope="module")
def state():
    return openai_states.random_state()


@pytest.fixture(scope="module")
def small(state, tmp_path_factory):
    return file_of(tmp_path_factory.mktemp("weights"), state)


# ---- Networks


SHAPES = {
    "plain": {},
    "learned": {"out": 6, "scale_shift": False},
    "classes": {"classes": 10, "attention": (0, 1), "blocks": 2},
    "residual": {"halving": "block", "mult": (1, 1, 2), "attention": (0, 2)},
    "residual, no attention": {"halving": "block", "attention": (), "blocks": 2},
    "average": {"halving": "pool", "mult": (1, 2, 2), "out": 6},
    "fractions": {"mult": (0.5, 1, 1.5), "channels": 64, "attention": (1,)},
    "thirds": {"mult": (1, 4 / 3), "channels": 96},
    "one level": {"mult": (2,), "attention": (0,), "blocks": 2},
    "grey": {"image": 1, "out": 2},
}


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES.keys())
def test_every_tensor_has_a_place_and_every_parameter_is_filled(options):
    tensors = {
        name: LazyArray(shape, np.zeros) for name, shape in openai_states.shapes(**options).items()
    }
    structure = structure_of(PATH, tensors)
    given = parse_flags({"image_size": 16, "channel_mult": structure.multipliers})
    network = openai._network(PATH, given, Flags(**given), structure)
    expected = expected_shapes(network, (16, 16, options.get("image", 3)))
    found, unused = our_arrays(tensors, structure, Heads.of(Flags(**given)))
    assert unused == []
    assert found.keys() == expected.keys()
    match_arrays(expected, found, unused)
    assert network.num_blocks == options.get("blocks", 1)
    assert [int(network.channels * m) for m in network.multipliers] == [
        int(options.get("channels", 32) * m) for m in options.get("mult", (1, 2))
    ]


# By the code of the two repositories, on torch's meta device. Published as 50M, 100M (120M in the
# paper), 270M; and, in table 11 of Dhariwal & Nichol 2021, 296M, 422M, 554M, 559M and 552M.
COUNTS = {
    "cifar10_uncond_50M_500K.pt": (52_546_438, {}),
    "imagenet64_uncond_100M_1500K.pt": (121_063_942, {}),
    "imagenet64_cond_270M_250K.pt": (273_049_350, {"classes": 1000}),
    "lsun_uncond_100M_1200K_bs128.pt": (113_676_678, {"scale_shift": False}),
    "64x64_diffusion.pt": (295_904_454, {"halving": "block", "classes": 1000}),
    "128x128_diffusion.pt": (421_529_606, {"halving": "block", "classes": 1000}),
    "256x256_diffusion.pt": (553_838_086, {"halving": "block", "classes": 1000}),
    "256x256_diffusion_uncond.pt": (552_814_086, {"halving": "block"}),
    "512x512_diffusion.pt": (558_997_638, {"halving": "block", "classes": 1000}),
}


QUICK = ("cifar10_uncond_50M_500K.pt", "64x64_diffusion.pt", "lsun_uncond_100M_1200K_bs128.pt")


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.thorough) for name in COUNTS],
)
def test_public_files_have_the_parameters_of_their_programs(name):
    count, options = COUNTS[name]
    given = parse_flags(PUBLIC[name])
    flags = Flags(**given)
    multipliers = openai.CHANNEL_MULT[flags.image_size]
    heights = [flags.image_size >> level for level in range(len(multipliers))]
    attention = flags.attention_resolutions or (16, 8)
    shapes = openai_states.shapes(
        channels=flags.num_channels,
        mult=multipliers,
        blocks=flags.num_res_blocks,
        attention=[level for level, height in enumerate(heights) if height in attention],
        out=6,
        **options,
    )
    tensors = {path: LazyArray(shape, np.zeros) for path, shape in shapes.items()}
    structure = structure_of(PATH, tensors)
    openai._check_flags(PATH, flags, structure)
    network = openai._network(PATH, given, flags, structure)
    expected = expected_shapes(network, (flags.image_size, flags.image_size, 3))
    assert sum(map(math.prod, expected.values())) == count
    match_arrays(expected, *our_arrays(tensors, structure, Heads.of(flags)))


def test_layouts_of_kernels(state, small):
    params = weights.from_openai(small, options=SMALL).params()["params"]
    kernel = state["input_blocks.1.0.in_layers.2.weight"]
    np.testing.assert_array_equal(
        params["down_0_0"]["conv_0"]["kernel"][1, 2, 3], kernel[:, 3, 1, 2]
    )
    kernel = state["time_embed.0.weight"]
    np.testing.assert_array_equal(params["time_0"]["kernel"], kernel.T)
    kernel = state["output_blocks.3.0.skip_connection.weight"]
    np.testing.assert_array_equal(params["up_0_1"]["shortcut"]["kernel"], kernel[:, :, 0, 0].T)
    kernel = state["output_blocks.1.2.conv.weight"]
    np.testing.assert_array_equal(params["up_1_double"]["kernel"][0, 1], kernel[:, :, 0, 1].T)
    scale = state["out.0.weight"]
    np.testing.assert_array_equal(params["output_norm"]["scale"], scale)


@pytest.mark.parametrize("parts_first", [False, True])
def test_both_orders_of_queries_keys_and_values(parts_first, state, tmp_path):
    # An output channel of the 1x1 convolution is named by (part, head, channel of the head).
    width, heads = 64, 4
    part, head, channel = np.meshgrid(range(3), range(heads), range(width // heads), indexing="ij")
    names = 10_000 * part + 100 * head + channel
    rows = names.reshape(-1) if parts_first else names.transpose(1, 0, 2).reshape(-1)
    bias = {"middle_block.1.qkv.bias": rows.astype(np.float32)}
    file = file_of(tmp_path, state | bias)
    options = SMALL | {"use_new_attention_order": parts_first}
    arrays = weights.from_openai(file, options=options).arrays["ema"]
    for index, name in enumerate(("query", "key", "value")):
        read = arrays[f"middle_attention/{name}/bias"].read()
        np.testing.assert_array_equal(read, names[index].reshape(-1))
    kernel = state["middle_block.1.qkv.weight"][..., 0]
    read = arrays["middle_attention/key/kernel"].read()
    np.testing.assert_array_equal(read, kernel[(rows >= 10_000) & (rows < 20_000)].T)


def test_heads_by_number_by_width_and_on_the_way_up(small):
    network = weights.from_openai(small, options=SMALL | {"num_heads_upsample": 8}).network
    assert (network.heads, network.up_heads, network.head_channels) == (4, 8, None)
    network = weights.from_openai(small, options=SMALL | {"num_head_channels": 16}).network
    assert (network.up_heads, network.head_channels) == (None, 16)


def test_options_that_are_in_no_file(small):
    network = weights.from_openai(small, options=SMALL | {"dropout": 0.3}).network
    assert network.dropout == 0.3
    assert (network.norm_groups, network.norm_epsilon) == (32, 1e-5)
    assert (network.cosine_first, network.frequency_shift) == (True, 0.0)
    assert network.symmetric_padding


def test_both_files_of_a_run(state, small, tmp_path):
    last = {name: 2 * array for name, array in state.items()}
    raw = file_of(tmp_path, last, "raw.pt")
    both = weights.from_openai(small, raw=raw, options=SMALL)
    ema, raw_params = both.params(), both.params("raw")
    np.testing.assert_array_equal(
        raw_params["params"]["input"]["kernel"], 2 * ema["params"]["input"]["kernel"]
    )
    assert len(both.source["sha256"]) == 2
    del last["out.0.bias"]
    raw = file_of(tmp_path, last, "raw.pt")
    with pytest.raises(WeightsError, match=r"raw.pt: .* does not have: output_norm/bias"):
        weights.from_openai(small, raw=raw, options=SMALL)


def test_half_precision_is_read_as_float32(state, tmp_path):
    half = {name: array.astype(np.float16) for name, array in state.items()}
    double = {name: array.astype(np.float64) for name, array in state.items()}
    for other in (half, double):
        arrays = weights.from_openai(file_of(tmp_path, other), options=SMALL).arrays["ema"]
        read = [arrays[name].read() for name in ("time_0/bias", "middle_attention/key/kernel")]
        assert {array.dtype.name for array in read} == {"float32"}
        np.testing.assert_array_equal(read[0], other["time_embed.0.bias"].astype(np.float32))


# ---- Flags


def test_flags_as_a_string_or_a_mapping():
    expected = {"image_size": 64, "learn_sigma": True, "attention_resolutions": (32, 8)}
    assert (
        parse_flags("--image_size 64 --learn_sigma True --attention_resolutions 32,8") == expected
    )
    assert parse_flags("--image_size=64 --learn_sigma=y --attention_resolutions=32,8") == expected
    assert parse_flags(expected) == expected
    assert parse_flags("--channel_mult 0.5,1") == {"channel_mult": (0.5, 1.0)}
    assert parse_flags("--lr 1e-4 --batch_size 128 --use_kl True --data_dir 'my images'") == {}
    assert parse_flags("") == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--image_size", "have to be pairs such as --image_size 64"),
        ("image_size 64", "have to be pairs such as --image_size 64"),
        ("--image_size '64", "an unclosed quote"),
        ("--image_size 64.5", r"--image_size is '64.5'; it has to be a whole number of 1 or more"),
        ({"image_size": True}, "--image_size is True; it has to be a whole number"),
        ({"image_size": None}, "--image_size is None; it has to be a whole number"),
        ({"num_heads": float("inf")}, "--num_heads is inf; it has to be a whole number"),
        ("--num_heads 0", "--num_heads is '0'; it has to be a whole number of 1 or more"),
        ("--num_heads_upsample -2", "it has to be a whole number of 1 or more, or -1"),
        ("--learn_sigma maybe", "--learn_sigma is 'maybe'; it has to be True or False"),
        ("--dropout 1", r"--dropout is '1'; it has to be in \[0, 1\)"),
        ("--channel_mult 1,x", "--channel_mult is '1,x'; it has to be numbers above 0"),
        ("--attention_resolutions 0", "it has to be whole numbers, as 32,16,8"),
        (
            "--num_chanels 64",
            "--num_chanels is not a flag of improved-diffusion or guided-diffusion",
        ),
        ("--large_size 256 --small_size 64", "a super-resolution network"),
        ("--classifier_scale 1.0", "there is no guidance by a classifier here"),
    ],
)
def test_flags_that_are_refused(options, message):
    with pytest.raises(WeightsError, match=message):
        parse_flags(options)


@pytest.mark.parametrize("T", [1000, 4000, 100])
def test_the_linear_schedule_is_scaled_to_its_steps(T):
    chain = Flags(diffusion_steps=T).chain()
    betas = np.linspace(0.1 / T, 20 / T, T)
    np.testing.assert_allclose(
        schedules.linear(**chain.arguments).alpha_bar, np.cumprod(1 - betas), rtol=1e-6
    )


def test_the_cosine_schedule():
    chain = Flags(diffusion_steps=4000, noise_schedule="cosine").chain()
    assert chain == Recipe("cosine", {"num_steps": 4000})
    signal = np.cos((np.arange(4001) / 4000 + 0.008) / 1.008 * np.pi / 2) ** 2
    alpha_bar = schedules.cosine(**chain.arguments).alpha_bar
    np.testing.assert_allclose(alpha_bar[:3990], (signal / signal[0])[1:3991], rtol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"diffusion_steps": 1}, "--diffusion_steps is 1; it has to be 2 or more"),
        ({"diffusion_steps": 20}, "the beta 20 / T, which has to be below 1"),
        ({"noise_schedule": "sqrt"}, "--noise_schedule is 'sqrt'; it has to be linear or cosine"),
        ({"timestep_respacing": "10,15,20"}, "sections are not supported"),
        ({"timestep_respacing": "1"}, "from 2 to --diffusion_steps, 1000"),
        ({"timestep_respacing": "ddim2000"}, "from 2 to --diffusion_steps, 1000"),
        ({"timestep_respacing": "ddim300"}, "its number has to divide --diffusion_steps, 1000"),
        ({"timestep_respacing": "fast"}, "it has to be a number of steps"),
    ],
)
def test_chains_and_samplers_that_are_refused(flags, message):
    with pytest.raises(WeightsError, match=message):
        weights.from_openai("nowhere.pt", options=flags)


def test_how_images_are_drawn():
    def sampler(options):
        return Flags(**parse_flags(options)).sampler()

    clipped = {"threshold": Recipe("static_threshold", {})}
    assert sampler("") == Recipe("ancestral", {"steps": None, "spacing": "linspace", **clipped})
    assert sampler("--timestep_respacing 250 --clip_denoised False") == Recipe(
        "ancestral", {"steps": 250, "spacing": "linspace", "threshold": None}
    )
    assert sampler("--timestep_respacing ddim50 --use_ddim True") == Recipe(
        "ddim", {"eta": 0.0, "steps": 50, "spacing": "leading", **clipped}
    )


def test_what_the_network_predicts(small):
    opened = weights.from_openai(small, options=SMALL)
    assert (opened.predicts, opened.variance, opened.classes) == ("eps", "large", None)
    opened = weights.from_openai(
        small, options=SMALL | {"predict_xstart": True, "sigma_small": True}
    )
    assert (opened.predicts, opened.variance) == ("x0", "small")


def test_times_are_scaled_as_the_program_does(small):
    def scale(**options):
        return weights.from_openai(small, options={"image_size": 16} | options).network.time_scale

    # The defaults of the two programs differ, and with 1000 steps it does not matter.
    assert scale() == 1.0
    with pytest.raises(WeightsError, match="--rescale_timesteps is not given; it has to be"):
        scale(diffusion_steps=4000)
    assert scale(diffusion_steps=4000, rescale_timesteps=True) == 0.25
    assert scale(diffusion_steps=4000, num_head_channels=16) == 1.0  # guided-diffusion's flag
    assert scale(diffusion_steps=4000, sigma_small=True) == 0.25  # improved-diffusion's


@pytest.mark.parametrize("name", PUBLIC)
def test_flags_of_public_files_are_of_chains_and_samplers(name):
    flags = Flags(**parse_flags(PUBLIC[name]))
    assert flags.chain().arguments["num_steps"] in (1000, 4000)
    assert flags.sampler().name == "ancestral"
    assert flags.learn_sigma


def test_flags_follow_from_a_public_name_and_can_be_changed(state, tmp_path, monkeypatch):
    monkeypatch.setitem(PUBLIC, "public.pt", "--image_size 16 --channel_mult 1,2 --num_heads 4")
    file = file_of(tmp_path, state, "public.pt")
    opened = weights.from_openai(file)
    assert (opened.network.heads, opened.image_shape) == (4, (16, 16, 3))
    assert weights.from_openai(file, options="--num_heads 2").network.heads == 2
    assert opened.source["options"] == {
        "image_size": 16,
        "channel_mult": [1.0, 2.0],
        "num_heads": 4,
    }


# ---- Refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_channels": 64}, "--num_channels is 64, and the tensors of .* are of 32"),
        ({"num_res_blocks": 2}, "--num_res_blocks is 2, and the tensors of .* are of 1"),
        ({"channel_mult": "1,2,2"}, "--channel_mult is 1,2,2, and the tensors of .* are of 1,2"),
        ({"class_cond": True}, "--class_cond is True, and the tensors of .* are of False"),
        ({"learn_sigma": True}, "--learn_sigma is True, and the tensors of .* are of False"),
        ({"use_scale_shift_norm": False}, "--use_scale_shift_norm is False, and .* of True"),
        ({"resblock_updown": True}, "--resblock_updown is True, and the tensors .* of False"),
        ({"conv_resample": False}, "--conv_resample is False, and the tensors of .* of True"),
        (
            {"image_size": 16, "attention_resolutions": "16"},
            "--attention_resolutions is 16, .* of 8",
        ),
        ({"image_size": 32}, "--image_size is 32, which has the --channel_mult 1,2,2,2 by default"),
        ({}, "--image_size is 64, which has the --channel_mult 1,2,3,4 by default, .* of 1,2"),
        ({"image_size": 15}, "--image_size is 15, and the network of .* halves it 1 times"),
        ({"image_size": 16, "num_heads": 5}, "--num_heads is 5; it has to divide 64"),
        (
            {"image_size": 16, "num_heads_upsample": 7},
            "--num_heads_upsample is 7; it has to divide",
        ),
        (
            {"image_size": 16, "num_head_channels": 48},
            "--num_head_channels is 48; it has to divide",
        ),
    ],
)
def test_flags_that_disagree_with_the_tensors(options, message, small):
    with pytest.raises(WeightsError, match=message):
        weights.from_openai(small, options=options)


def test_files_whose_flags_are_not_known(small):
    with pytest.raises(
        WeightsError, match=r"options are not given, and model.pt is not a public file"
    ):
        weights.from_openai(small)
    for name, kind in REFUSED.items():
        with pytest.raises(WeightsError, match=f"{name} is {kind}; only denoisers"):
            weights.from_openai(name, options="--image_size 64")


@pytest.mark.thorough
def test_files_of_other_networks(state, tmp_path):
    def refused(tensors, message):
        with pytest.raises(WeightsError, match=message):
            weights.from_openai(file_of(tmp_path, tensors), options=SMALL)

    def without(*beginnings):
        return {name: a for name, a in state.items() if not name.startswith(beginnings)}

    refused({}, "not a U-Net of improved-diffusion .* no tensor time_embed.0.weight of 2 axes$")
    refused(
        {"conv_in.weight": state["out.2.weight"]}, "it is of diffusers, whose folders from_diff"
    )
    refused(without("output_blocks"), "output_blocks.0.0.in_layers.2.weight .*; it is a classifier")
    refused(openai_states.random_state(image=6), "super-resolution network, which takes a small")
    refused(openai_states.random_state(image=6, out=6), "super-resolution network")
    refused(without("out.2.bias"), "the file does not have: output/bias$")
    # Names of files and of storages are names only, whatever dots they have.
    extra = {"../../x": state["out.2.bias"], "input_blocks..0": state["out.2.bias"]}
    refused(state | extra, r"the network does not use: ../../x, input_blocks..0$")
    refused(state | {"label_emb.weight": np.zeros((3, 5), np.float32)}, "of another shape: classes")
    refused(
        state | {"out.2.weight": np.zeros((3, 32, 1, 1), np.float32)}, r"output/kernel is \[1, 1"
    )
    refused(state | {"time_embed.2.weight": np.zeros(3, np.float32)}, r"time_1/kernel is \[3\]")
    qkv = {"middle_block.1.qkv.weight": np.zeros((190, 64, 1), np.float32)}
    refused(state | qkv, r"of another shape: .*middle_attention/query/kernel is")
    ninth = {"input_blocks.8.0.in_layers.2.weight": state["input_blocks.1.0.in_layers.2.weight"]}
    refused(state | ninth, "its 9 input_blocks are no levels of 1 blocks each")
    odd = openai_states.random_state(channels=48)
    refused(odd, "levels of .* have 48,96 channels; its program splits them into 32 groups")


@pytest.mark.parametrize("legacy", [True, False])
def test_damaged_files(legacy, small, state, tmp_path):
    content = as_file(state, legacy=legacy)
    path = tmp_path / "cut.pt"
    for share in (0.0, 0.01, 0.5, 0.999):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(WeightsError, match=re.escape(f"{path} is not a dict of tensors")):
            weights.from_openai(path, options=SMALL)
    with pytest.raises(WeightsError, match=r"nowhere.pt cannot be read: No such"):
        weights.from_openai(tmp_path / "nowhere.pt", options=SMALL)
    with pytest.raises(WeightsError, match=r"raw.pt cannot be read"):
        weights.from_openai(small, raw=tmp_path / "raw.pt", options=SMALL)


def test_a_file_with_code_in_it(tmp_path):
    path, proof = tmp_path / "evil.pt", tmp_path / "proof"
    path.write_bytes(zip_file({"x": Call(Named("os", "system"), (f"touch {proof}",))}, {}))
    with pytest.raises(WeightsError, match=r"os.system, .* it was not called"):
        weights.from_openai(path, options=SMALL)
    assert not proof.exists()
