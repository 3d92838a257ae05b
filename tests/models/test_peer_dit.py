"""The diffusion transformer beside that of diffusers, which has the same parameters elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from peers import diffusers, torch

from ddpm_jax.models import DiT, init_params

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

HEADS, HEAD, DEPTH, PATCH, SIDE, CHANNELS, CLASSES = 2, 12, 2, 2, 8, 3, 5
WIDTH = HEADS * HEAD
X = np.random.default_rng(0).normal(size=(3, SIDE, SIDE, CHANNELS))
T, LABELS = np.array([0, 37, 999]), np.array([0, 4, CLASSES])


def ours(dtype):
    return DiT(
        patch=PATCH,
        width=WIDTH,
        depth=DEPTH,
        heads=HEADS,
        frequency_shift=1.0,  # theirs, which is not the paper's
        num_classes=CLASSES,
        learned_variance=True,
        dtype=dtype,
    )


def theirs():
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD,
        in_channels=CHANNELS,
        out_channels=2 * CHANNELS,
        num_layers=DEPTH,
        sample_size=SIDE,
        patch_size=PATCH,
        num_embeds_ada_norm=CLASSES,
        norm_eps=1e-6,  # the paper's; their default is another
    ).eval()


def names_of_a_block(index):
    """Our names of a block's dense layers, and theirs."""
    attention, mlp = (f"transformer_blocks.{index}.{name}" for name in ("attn1", "ff.net"))
    return {
        f"block_{index}/modulation": f"transformer_blocks.{index}.norm1.linear",
        f"block_{index}/query": f"{attention}.to_q",
        f"block_{index}/key": f"{attention}.to_k",
        f"block_{index}/value": f"{attention}.to_v",
        f"block_{index}/output": f"{attention}.to_out.0",
        f"block_{index}/mlp_0": f"{mlp}.0.proj",
        f"block_{index}/mlp_1": f"{mlp}.2",
    }


def embedder(index):
    return f"transformer_blocks.{index}.norm1.emb"


def filled(model, params):
    """Their model with our parameters, and the same embedding of time in each block."""
    dense = {"output_modulation": "proj_out_1", "output": "proj_out_2"}
    state = {}
    for index in range(DEPTH):
        dense |= names_of_a_block(index)
        for layer, name in (("time_0", "linear_1"), ("time_1", "linear_2")):
            own = params[layer]
            state[f"{embedder(index)}.timestep_embedder.{name}.weight"] = own["kernel"].T
            state[f"{embedder(index)}.timestep_embedder.{name}.bias"] = own["bias"]
        table = f"{embedder(index)}.class_embedder.embedding_table.weight"
        state[table] = params["classes"]
    for own, name in dense.items():
        layer = params
        for part in own.split("/"):
            layer = layer[part]
        state |= {f"{name}.weight": layer["kernel"].T, f"{name}.bias": layer["bias"]}
    kernel = params["input"]["kernel"].reshape(PATCH, PATCH, CHANNELS, WIDTH)
    state["pos_embed.proj.weight"] = kernel.transpose(3, 2, 0, 1)
    state["pos_embed.proj.bias"] = params["input"]["bias"]
    dtype = next(model.parameters()).dtype
    tensors = {name: torch.from_numpy(np.array(a)).to(dtype) for name, a in state.items()}
    model.load_state_dict(tensors, strict=True)
    return model


def random_params():
    boxed = jax.eval_shape(
        lambda key: init_params(ours(jnp.float32), key, X.shape[1:]), jax.random.key(0)
    )
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape) / np.sqrt(leaf.shape[0]), meta.unbox(boxed)
    )


def widen(model):
    """Their sinusoids, of time and of places, in float64: their own are of float32."""
    frequencies = 10_000.0 ** -(np.arange(128) / 127)

    class Wide(torch.nn.Module):
        def forward(self, timestep):
            angles = timestep.double()[:, None] * torch.from_numpy(frequencies)[None]
            return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)

    for block in model.transformer_blocks:
        block.norm1.emb.time_proj = Wide()
    count, quarter = SIDE // PATCH, WIDTH // 4
    angles = np.arange(count)[:, None] * 10_000.0 ** -(np.arange(quarter) / quarter)
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    places = [
        np.concatenate([waves[column], waves[row]])
        for row in range(count)
        for column in range(count)
    ]
    model.pos_embed.pos_embed = torch.from_numpy(np.stack(places)[None])


@pytest.mark.parametrize(("dtype", "within"), [("float32", 2e-5), ("float64", 1e-12)])
def test_the_output_is_theirs_at_random_parameters(dtype, within):
    params, model = random_params(), theirs().to(getattr(torch, dtype))
    if dtype == "float64":
        widen(model)
    filled(model, params["params"])
    x_t = np.asarray(X, dtype)
    with torch.no_grad():
        images = torch.from_numpy(x_t.transpose(0, 3, 1, 2).copy())
        times, labels = (torch.from_numpy(values) for values in (T, LABELS))
        expected = model(images, timestep=times, class_labels=labels).sample.numpy()
    with jax.enable_x64(dtype == "float64"):
        given = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
        labels = np.where(LABELS == CLASSES, -1, LABELS)  # ours of no class
        output = jax.jit(ours(jnp.dtype(dtype)).apply)(
            given, jnp.asarray(x_t), jnp.asarray(T, jnp.int32), labels=jnp.asarray(labels, "int32")
        )
    pair = np.split(expected.transpose(0, 2, 3, 1), 2, axis=-1)
    for found, wanted in zip(output, pair, strict=True):
        assert found.dtype == np.dtype(dtype)
        np.testing.assert_allclose(found, wanted, rtol=0.0, atol=within * np.abs(wanted).max())
