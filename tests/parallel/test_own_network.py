"""Networks on meshes that split parameters: one whose parameters name no axes, and a DiT."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from paths import MIXED

from ddpm_jax import config as configs
from ddpm_jax import experiment as experiments
from ddpm_jax import parallel
from ddpm_jax.cli import main
from ddpm_jax.data import Examples, ImageSpec
from ddpm_jax.training import Checkpoints

SPEC = ImageSpec("images", (8, 8, 1), 17)
STEPS = 3


class Plain(nn.Module):
    """Dense layers as Flax has them."""

    @nn.compact
    def __call__(self, x_t, t):
        h = x_t.reshape(len(x_t), -1)
        h = jnp.tanh(nn.Dense(96, name="first")(h) + 0.01 * t[:, None].astype(jnp.float32))
        h = jnp.tanh(nn.Dense(75, name="odd")(h))
        scale = self.param("scale", nn.initializers.ones, ())
        return scale * nn.Dense(64, name="last")(h).reshape(x_t.shape)


@dataclasses.dataclass(frozen=True)
class PlainNetwork(configs.Network):
    def make(self, images):
        return Plain()


def built(mesh, *, network=PlainNetwork(), optimizer=None):
    # An epsilon above the gradients' size: Adam would make a step of a rounding error near 0.
    optimizer = optimizer or configs.Adam(learning_rate=1e-2, warmup_steps=0, eps=1e-2)
    config = dataclasses.replace(
        tiny.get_config(),
        network=network,
        objective=configs.Simple(),
        times=configs.Uniform(),
        optimizer=optimizer,
        mesh=mesh,
    )
    devices = jax.devices()[: mesh.data * mesh.fsdp]
    return experiments.build(config, spec=SPEC, devices=devices)


DIT = configs.DiT(width=64, depth=1, heads=2, dropout=0.1)


def specs(tree):
    """The partition of each array, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(parallel.shardings(tree))
    return {jax.tree_util.keystr(path): leaf.spec for path, leaf in leaves}


def trained(experiment):
    """The losses of some steps, and the state after them."""
    form = experiments.make_form(experiment)
    step = experiments.lower_step(experiment, form).compile()
    state, losses = experiments.initial_state(experiment), []
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        images = rng.integers(0, 17, (16, 8, 8, 1), np.uint8)
        state, metrics = step(state, form.place(Examples(images, None)))
        losses.append(float(metrics.loss))
    return losses, state


def test_each_array_is_split_along_its_longest_axis_that_divides():
    experiment = built(configs.Jit(data=2, fsdp=2))
    found = specs(experiment.abstract_state.params)
    split = {path: tuple(spec) for path, spec in found.items() if "fsdp" in spec}
    assert split == {
        "['params']['first']['kernel']": (None, "fsdp"),  # [64, 96]
        "['params']['odd']['kernel']": ("fsdp", None),  # [96, 75]
        "['params']['last']['kernel']": (None, "fsdp"),  # [75, 64]
    }
    assert experiment.sharding_note == (
        "network PlainNetwork names no axes: 3 of 7 parameters are split along their largest axis,"
        " 4 are whole on each device"
    )
    # Averages and moments are split as their parameters are.
    state = specs(experiment.abstract_state)
    for path in split:
        same = [spec for name, spec in state.items() if name.endswith(path)]
        assert len(same) == 4
        assert {tuple(spec) for spec in same} == {split[path]}
    assert built(configs.Jit(data=4, fsdp=1)).sharding_note is None


@pytest.mark.parametrize("mesh", [configs.Jit(data=2, fsdp=2), configs.ShardMap(data=1, fsdp=4)])
def test_it_trains_as_on_a_mesh_that_splits_nothing(mesh):
    losses, state = trained(built(mesh))
    kernel = state.params["params"]["odd"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (96 // mesh.fsdp, 75)
    expected, whole = trained(built(configs.Jit(data=4, fsdp=1)))
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    assert losses[0] != losses[-1]
    for one, other in zip(*map(jax.tree.leaves, (state.params, whole.params)), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


def test_a_network_that_names_axes_is_split_by_its_names_alone():
    network = dataclasses.replace(tiny.get_config().network, channels=16, norm_groups=8)
    experiment = built(configs.Jit(data=2, fsdp=2), network=network)
    assert experiment.sharding_note is None
    names = parallel.axis_names(experiments.experiment._boxed_state(experiment).params)
    assert names
    assert parallel.LARGEST not in names

    class Half(nn.Module):
        """The same, but for one name."""

        @nn.compact
        def __call__(self, x_t, t):
            init = nn.with_logical_partitioning(nn.initializers.ones, ("rows", None))
            return Plain()(x_t, t) * self.param("table", init, (64, 64))[0, 0]

    @dataclasses.dataclass(frozen=True)
    class HalfNetwork(configs.Network):
        def make(self, images):
            return Half()

    experiment = built(configs.Jit(data=2, fsdp=2), network=HalfNetwork())
    assert experiment.sharding_note is None
    assert not any("fsdp" in spec for spec in specs(experiment.abstract_state).values())


@pytest.mark.thorough
def test_a_dit_trains_as_on_a_mesh_that_splits_nothing():
    experiment = built(configs.Jit(data=2, fsdp=2), network=DIT)
    found = specs(experiment.abstract_state.params)
    split = {path for path, spec in found.items() if "fsdp" in spec}
    kernels = ("query", "key", "value", "output", "mlp_0", "mlp_1", "modulation")
    assert {f"['params']['block_0']['{name}']['kernel']" for name in kernels} <= split
    losses, state = trained(experiment)
    expected, whole = trained(built(configs.Jit(data=4, fsdp=1), network=DIT))
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    assert losses[0] != losses[-1]
    for one, other in zip(*map(jax.tree.leaves, (state.params, whole.params)), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


@pytest.mark.parametrize("kind", configs.members(configs.Optimizer))
@pytest.mark.parametrize("network", [PlainNetwork(), None], ids=["plain", "unet"])
def test_every_optimizer_has_a_state_for_arrays_in_boxes(kind, network):
    """Its state is the one that it has without them, and it can be updated."""
    network = network or tiny.get_config().network
    experiment = built(configs.Jit(data=2, fsdp=2), network=network, optimizer=kind())
    state, optimizer = experiment.abstract_state, experiment.optimizer
    plain = jax.eval_shape(optimizer.init, state.params)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (state.opt_state, plain))
    assert jax.tree.structure(state.opt_state) == jax.tree.structure(plain)
    assert shapes[0] == shapes[1]
    with jax.numpy_dtype_promotion("standard"):  # as the train step has it
        updates, after = jax.eval_shape(
            optimizer.update, state.params, state.opt_state, state.params
        )
    assert jax.tree.structure(after) == jax.tree.structure(plain)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, state.params)
    # What is shaped as a parameter that is split is split as well.
    split = {path: spec for path, spec in specs(state.params).items() if "fsdp" in spec}
    for path, spec in specs(state.opt_state).items():
        for name, expected in split.items():
            assert spec == expected or not path.endswith(name)


@pytest.mark.thorough
def test_training_says_how_it_is_split(tmp_path, capsys):
    mesh = ["--mesh.data", "1", "--mesh.fsdp", "2"]
    assert main(["train", MIXED, "--train.steps", "1", *mesh, "--workdir", str(tmp_path)]) == 0
    sentence = "network Mixed names no axes: 1 of 8 parameters are split along their largest axis"
    assert capsys.readouterr().out.count(sentence) == 1


@pytest.mark.thorough
def test_a_state_with_empty_places_comes_back_from_a_checkpoint(tmp_path):
    """Of Muon, which has a momentum of matrices alone and moments of all else."""
    experiment = built(configs.Jit(data=2, fsdp=2), optimizer=configs.Muon())
    state = experiments.initial_state(experiment)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state, {}, held_out_loss=0.0)
        checkpoints.wait()
        restored = checkpoints.restore(experiment.abstract_state).state
    assert specs(restored) == specs(state)
    jax.tree.map(np.testing.assert_array_equal, restored.opt_state, state.opt_state)
