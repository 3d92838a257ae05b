"""Files of OpenAI's programs, as PyTorch writes them, beside networks of diffusers.

Where diffusers' U-Net can be the same network as theirs, its tensors are given their names and
their layout of queries, keys and values here; what their code is, no test needs.
"""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import diffusers, torch

from ddpm_jax import weights
from ddpm_jax.weights.torch_files import open_state_dict

BLOCKS, SIDE = 1, 16

LAYERS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "group_norm": "norm",
    "to_out.0": "proj_out",
}
TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding": "label_emb",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def place(kind, level, part, index):
    """Of a block of diffusers, in the numbering of OpenAI's."""
    stride = BLOCKS + 1
    match kind, part:
        case "mid_block", "resnets":
            return f"middle_block.{2 * index}"
        case "mid_block", _:
            return "middle_block.1"
        case "down_blocks", "downsamplers":
            return f"input_blocks.{(level + 1) * stride}.0"
        case "up_blocks", "upsamplers":
            return f"output_blocks.{level * stride + BLOCKS}.2"  # behind an attention
        case "down_blocks", _:
            return f"input_blocks.{1 + level * stride + index}.{int(part == 'attentions')}"
        case _:
            return f"output_blocks.{level * stride + index}.{int(part == 'attentions')}"


def renamed(state, heads, *, parts_first):
    """The tensors of a diffusers network under OpenAI's names."""
    found, qkv = {}, {}
    for name, tensor in state.items():
        layer, leaf = name.rsplit(".", 1)
        if layer in TOP:
            found[f"{TOP[layer]}.{leaf}"] = tensor
            continue
        pattern = r"(\w+_blocks?)\.(?:(\d+)\.)?(\w+)\.(\d+)\.?(.*)"
        kind, level, part, index, layer = re.fullmatch(pattern, layer).groups()
        block = place(kind, int(level or 0), part, int(index))
        if layer in ("to_q", "to_k", "to_v"):
            qkv.setdefault(f"{block}.qkv.{leaf}", {})[layer] = tensor
        elif layer in ("", "conv"):
            found[f"{block}.{'op' if kind == 'down_blocks' else 'conv'}.{leaf}"] = tensor
        else:
            tensor = tensor[:, :, None] if layer == "to_out.0" and leaf == "weight" else tensor
            found[f"{block}.{LAYERS[layer]}.{leaf}"] = tensor
    for name, parts in qkv.items():
        q, k, v = (parts[part] for part in ("to_q", "to_k", "to_v"))
        if parts_first:
            whole = torch.cat([q, k, v])
        else:
            split = [part.chunk(heads) for part in (q, k, v)]
            whole = torch.cat([part[head] for head in range(heads) for part in split])
        found[name] = whole[:, :, None] if name.endswith("weight") else whole
    return found


CASES = {
    "improved-diffusion": (
        {"resnet_time_scale_shift": "default", "out_channels": 3},
        {"use_scale_shift_norm": False, "num_heads": 4},
    ),
    "guided-diffusion": (
        {
            "resnet_time_scale_shift": "scale_shift",
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "out_channels": 6,
            "num_class_embeds": 5,
        },
        {"num_head_channels": 16, "use_new_attention_order": True, "learn_sigma": True},
    ),
}


@pytest.fixture(params=CASES)
def network(request):
    """A network of diffusers with random weights, and the flags of OpenAI's programs."""
    options, flags = CASES[request.param]
    residual = "downsample_type" in options
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = diffusers.UNet2DModel(
            sample_size=SIDE,
            block_out_channels=(32, 64),
            layers_per_block=BLOCKS,
            down_block_types=(
                "ResnetDownsampleBlock2D" if residual else "DownBlock2D",
                "AttnDownBlock2D",
            ),
            up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D" if residual else "UpBlock2D"),
            attention_head_dim=16,
            attn_norm_num_groups=32,
            norm_eps=1e-5,
            flip_sin_to_cos=True,
            freq_shift=0,
            **options,
        ).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.normal_(0.0, 0.1 if parameter.ndim < 4 else 0.05)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return network, {"image_size": SIDE, "channel_mult": (1, 2), **flags}


def test_predictions_are_those_of_the_network(network, tmp_path):
    network, flags = network
    path = tmp_path / "model.pt"
    parts_first = "use_new_attention_order" in flags
    state = renamed(network.state_dict(), 4, parts_first=parts_first)
    torch.save(state, path, _use_new_zipfile_serialization=parts_first)
    opened = weights.from_openai(path, options=flags)

    rng = np.random.default_rng(0)
    x_t = rng.normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)
    t, labels = np.array([3, 800], np.int32), np.array([4, 1], np.int32)
    known = {} if opened.classes is None else {"labels": jnp.asarray(labels)}
    ours = jax.jit(opened.network.apply)(opened.params(), jnp.asarray(x_t), jnp.asarray(t), **known)
    known = {} if opened.classes is None else {"class_labels": torch.from_numpy(labels)}
    with torch.no_grad():
        theirs = network(
            torch.from_numpy(x_t.transpose(0, 3, 1, 2).copy()), torch.from_numpy(t), **known
        ).sample
    theirs = theirs.numpy().transpose(0, 2, 3, 1)
    if opened.variance == "learned_range":
        prediction, interpolation = ours
        ours = jnp.concatenate([prediction, 2 * interpolation - 1], axis=-1)
    assert np.abs(np.asarray(ours) - theirs).max() < 2e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("legacy", [True, False])
def test_what_trainers_save(legacy, tmp_path):
    # Both programs save parameters themselves; those of float16 are views of one flat copy.
    first, second = torch.arange(6.0).reshape(2, 3), torch.arange(4.0, dtype=torch.float64)
    flat = torch.nn.Parameter(torch.cat([first.reshape(-1), first.reshape(-1) + 10]))
    layer = torch.nn.BatchNorm1d(2)
    state = layer.state_dict()  # a dict with attributes, and a counter
    state |= {
        "parameter": torch.nn.Parameter(first),
        "view": flat[6:].view(2, 3),
        "transposed": first.T,
        "half": second.half(),
        "brain": second.bfloat16(),
        "double": second,
        "empty": torch.zeros(0, 3),
    }
    path = tmp_path / "all.pt"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    opened = open_state_dict(path)
    assert opened.keys() == state.keys()
    for name, tensor in state.items():
        array = opened[name].read()
        assert array.shape == opened[name].shape == tuple(tensor.shape)
        expected = tensor.detach().float() if name == "brain" else tensor.detach()
        np.testing.assert_array_equal(array, expected.numpy(), strict=True)


def test_a_dict_of_a_trainer_is_opened_by_its_key(tmp_path):
    layer, path = torch.nn.Linear(2, 3), tmp_path / "all.pt"
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save(
        {"ema": layer.state_dict(), "optimizer": optimizer.state_dict(), "step": 3, "best": None},
        path,
    )
    opened = open_state_dict(path, key="ema")
    np.testing.assert_array_equal(opened["weight"].read(), layer.weight.detach().numpy())
    with pytest.raises(weights.WeightsError, match="holds the dicts 'ema', 'optimizer', not one"):
        open_state_dict(path)
