"""One step on many meshes: the same noise bit for bit, the same result but for rounding."""

import functools
import itertools
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import meta
from jax.sharding import PartitionSpec
from marks import thorough_but
from small import BATCH, OPTIMIZER, SIDE, WIDTH, born, make_objective

from ddpm_jax import config, parallel, training
from ddpm_jax.data import Examples
from ddpm_jax.errors import UserError
from ddpm_jax.parallel.rules import spec_of
from ddpm_jax.training import ema
from ddpm_jax.training.objective import draw

IMAGES = (np.random.default_rng(0).integers(0, 17, (3, BATCH, SIDE, SIDE, 1)) / 8.0 - 1.0).astype(
    np.float32
)

MEMBERS = {"jit": config.Jit, "shard_map": config.ShardMap, "pmap": config.Pmap}


class Program(NamedTuple):
    form: parallel.Form
    birth: jax.stages.Compiled
    lowered: jax.stages.Lowered
    step: jax.stages.Compiled


@functools.cache
def program(name, data, fsdp, *, dtype=jnp.float32, reduction="float32", watch=False, accumulate=1):
    objective = watched() if watch else make_objective(dtype)
    mesh = parallel.make_mesh(data, fsdp)
    boxed = functools.partial(born, objective, dtype)
    shardings = parallel.shardings(parallel.abstract(jax.eval_shape(boxed), mesh))
    member = MEMBERS[name](data=data, fsdp=fsdp, reduction=reduction)
    form = member.make(mesh, shardings, jnp.dtype(dtype).name)
    step = training.make_train_step(
        objective,
        OPTIMIZER,
        averages=[functools.partial(ema.decay_at, decay=0.9)],
        window_steps=1,
        accumulate=accumulate,
        form=form,
    )
    birth = jax.jit(lambda: meta.unbox(boxed()), out_shardings=shardings).lower().compile()
    batch = form.abstract_batch(jax.ShapeDtypeStruct(IMAGES.shape[1:], IMAGES.dtype))
    lowered = form.lower(step, birth(), batch)
    return Program(form, birth, lowered, lowered.compile())


class Run:
    """Some steps on a mesh, and what is left of them."""

    def __init__(self, name="jit", data=1, fsdp=1, **how):
        self.form, self.birth, self.lowered, self.step = program(name, data, fsdp, **how)
        self.state, self.losses = self.birth(), []

    def go(self, steps):
        for done in range(steps):
            batch = self.form.place(IMAGES[done % len(IMAGES)])
            self.state, metrics = self.step(self.state, batch)
            self.losses.append(float(metrics.loss))
        return self


@functools.cache
def alone(dtype=jnp.float32, steps=20):
    return Run(dtype=dtype).go(steps)


def difference(one, other):
    """The largest of any number in the two states' parameters and averages."""
    pairs = jax.tree.map(
        lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(),
        (one.state.params, one.state.averages),
        (other.state.params, other.state.averages),
    )
    return np.max(jax.tree.leaves(pairs))


MESHES = [
    ("jit", 8, 1),
    ("jit", 4, 2),
    ("jit", 1, 8),
    ("shard_map", 1, 1),
    ("shard_map", 8, 1),
    ("shard_map", 2, 4),
    ("shard_map", 1, 8),
    ("pmap", 1, 1),
    ("pmap", 8, 1),
]
QUICK = (("jit", 4, 2), ("shard_map", 2, 4), ("pmap", 8, 1))


@pytest.mark.parametrize(("name", "data", "fsdp"), thorough_but(QUICK, MESHES))
def test_every_form_and_mesh_gives_the_parameters_of_one_device(name, data, fsdp):
    """Sums over examples are grouped otherwise: some last places of parameters near 0.1."""
    run = Run(name, data, fsdp).go(20)
    np.testing.assert_allclose(run.losses, alone().losses, rtol=2e-6)
    assert difference(run, alone()) < 2e-6


@pytest.mark.parametrize(
    ("name", "data", "fsdp"), [("jit", 4, 2), ("shard_map", 4, 2), ("pmap", 8, 1)]
)
@pytest.mark.thorough
def test_forms_agree_in_bfloat16_as_well_as_its_rounding_lets_them(name, data, fsdp):
    """The example is what is rounded to 8 bits, on every mesh alike; sums over examples are not."""
    run = Run(name, data, fsdp, dtype=jnp.bfloat16).go(20)
    np.testing.assert_allclose(run.losses, alone(jnp.bfloat16).losses, rtol=2e-3)
    assert difference(run, alone(jnp.bfloat16)) < 2e-2


@pytest.mark.parametrize(
    ("name", "data", "fsdp", "accumulate"),
    [("jit", 1, 1, 8), ("jit", 2, 2, 2), ("shard_map", 2, 2, 8), ("pmap", 4, 1, 2)],
)
@pytest.mark.thorough
def test_a_batch_in_parts_is_the_batch(name, data, fsdp, accumulate):
    run = Run(name, data, fsdp, accumulate=accumulate).go(20)
    np.testing.assert_allclose(run.losses, alone().losses, rtol=2e-6)
    assert difference(run, alone()) < 2e-6


def watched():
    """An objective whose loss is nothing but noise and dropout; its memory is the last batch's."""

    def losses(params, x0, drawn):
        noise_keys, dropout_keys = jax.vmap(jax.random.split, out_axes=1)(drawn.key)
        eps = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(noise_keys)
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5))(dropout_keys)
        pull = params["params"]["last"]["bias"][0]
        return (
            eps[:, 0, 0, 0] + jnp.where(kept, 16.0, 0.0) + 64.0 * drawn.t.astype(float) + 0.0 * pull
        )

    def uniform(key, batch, memory):
        return jax.random.randint(key, (batch,), 0, 8), jnp.ones(batch)

    law = training.TimeLaw(
        draw=uniform,
        remember=lambda memory, t, losses: losses,
        initial_memory=lambda: jnp.zeros(BATCH),
    )
    return training.Objective(law, losses)


@functools.cache
def one_by_one():
    """What is drawn in the second step, an example at a time."""
    objective, params = watched(), {"params": {"last": {"bias": jnp.zeros(1)}}}
    drawn = draw(objective, jax.random.fold_in(jax.random.key(2), 1), BATCH, ())
    losses = jax.jit(objective.losses)
    rows = [training.Drawn(*(x[i : i + 1] for x in drawn)) for i in range(BATCH)]
    return np.concatenate([losses(params, IMAGES[0][:1], row) for row in rows])


@pytest.mark.parametrize(
    ("name", "data", "fsdp", "accumulate"),
    thorough_but(
        [(*mesh, accumulate) for mesh in QUICK for accumulate in (1, 4)],
        [(*mesh, 1) for mesh in [("jit", 1, 1), ("jit", 2, 1), ("jit", 2, 2), *MESHES]]
        + [(*mesh, 4) for mesh in [("jit", 1, 1), ("jit", 1, 8), *QUICK]],
    ),
)
def test_times_noise_and_dropout_are_the_same_bits_everywhere(name, data, fsdp, accumulate):
    run = Run(name, data, fsdp, watch=True, accumulate=accumulate).go(2)
    np.testing.assert_array_equal(run.state.memory, one_by_one())


@pytest.mark.parametrize(
    ("name", "data", "fsdp"), [("jit", 8, 1), ("jit", 2, 4), ("shard_map", 2, 4), ("pmap", 8, 1)]
)
@pytest.mark.thorough
def test_no_device_holds_the_noise_of_the_whole_batch(name, data, fsdp):
    """Read from the compiled program: no array in it has as many numbers."""
    text = Run(name, data, fsdp).step.as_text()
    sizes = {
        math.prod(map(int, shape.split(",")))
        for shape in re.findall(r"\b(?:f32|u32|s32|bf16|pred)\[([\d,]+)\]", text)
    }
    assert BATCH * SIDE * SIDE // 8 in sizes  # the share of a device is there
    assert BATCH * SIDE * SIDE not in sizes
    assert 2 * BATCH * SIDE * SIDE not in sizes


class TestFsdp:
    def test_everything_of_a_parameter_is_split_as_it_is(self):
        run = Run("jit", 2, 4)
        first = run.state.params["params"]["first"]["kernel"]
        assert first.sharding.spec == PartitionSpec(None, "fsdp")
        moments = optax.tree.get(run.state.opt_state, "mu")["params"]["first"]["kernel"]
        average = run.state.averages[0]["params"]["first"]["kernel"]
        for leaf in (first, moments, average):
            assert {shard.data.shape for shard in leaf.addressable_shards} == {(64, WIDTH // 4)}

    def test_it_stays_split(self):
        run = Run("jit", 2, 4)
        before = jax.tree.map(lambda leaf: leaf.sharding, run.state)
        after = jax.tree.map(lambda leaf: leaf.sharding, run.go(1).state)
        assert before == after

    def test_a_device_needs_less_for_it(self):
        arguments = [
            Run("jit", 8 // fsdp, fsdp).step.memory_analysis().argument_size_in_bytes
            for fsdp in (1, 4)
        ]
        # Parameters, two moments and an average of 12 k numbers: the kernels are 98 % of them.
        assert arguments[1] < 0.35 * arguments[0]

    def test_nobody_holds_a_whole_parameter_at_birth(self):
        text = Run("jit", 2, 4).birth.as_text()
        assert f"f32[64,{WIDTH // 4}]" in text
        assert f"f32[64,{WIDTH}]" not in text

    def test_the_clip_is_of_the_norm_over_all_parts(self):
        """With a clip of 0.1, and gradients far above: were each device to clip its own part, the
        parameters would differ from those of one device after the first step."""
        for name in ("jit", "shard_map"):
            run, whole = Run(name, 1, 8).go(1), Run().go(1)
            assert difference(run, whole) < 2e-6

    def test_pmap_cannot(self):
        with pytest.raises(ValueError, match=r"mesh\.fsdp is 2; .* form 'pmap'"):
            parallel.pmap_form(parallel.make_mesh(4, 2))


@pytest.mark.thorough
class TestReduction:
    """What is summed over devices, in the program as it is handed to the compiler."""

    @pytest.mark.parametrize(
        ("name", "reduction"),
        [
            ("jit", "float32"),  # in bfloat16 the compiler sums by itself, and it is not there yet
            *itertools.product(("shard_map", "pmap"), ("float32", "bfloat16")),
        ],
    )
    def test_it_is_in_the_dtype_that_was_chosen(self, name, reduction):
        run = Run(name, 8, 1, dtype=jnp.bfloat16, reduction=reduction)
        text = run.lowered.as_text()
        of_kernel = [
            dtype
            for body in re.findall(r'"stablehlo\.all_reduce".*?-> tensor<([^>]*)>', text, re.DOTALL)
            for shape, dtype in [body.rsplit("x", 1)]
            if shape == f"64x{WIDTH}"
        ]
        assert of_kernel == [{"float32": "f32", "bfloat16": "bf16"}[reduction]]

    @pytest.mark.parametrize("name", ["jit", "shard_map", "pmap"])
    def test_one_device_computes_what_is_written_and_no_reduction(self, name):
        run = Run(name, 1, 1, dtype=jnp.bfloat16, reduction="bfloat16").go(2)
        assert difference(run, alone(jnp.bfloat16, steps=2)) == 0.0
        text = run.lowered.as_text()
        assert not any(word in text for word in ("all_reduce", "manual", "sharding_constraint"))

    def test_bfloat16_rounds_what_float32_does_not(self):
        runs = {
            reduction: Run("shard_map", 8, 1, dtype=jnp.bfloat16, reduction=reduction).go(1)
            for reduction in ("float32", "bfloat16")
        }
        assert difference(runs["float32"], Run(dtype=jnp.bfloat16).go(1)) < 1e-4
        assert difference(runs["float32"], runs["bfloat16"]) > 1e-6


class TestRules:
    @pytest.mark.parametrize(
        ("names", "shape", "spec"),
        [
            (
                ("kernel_height", "kernel_width", "in", "out"),
                (3, 3, 64, 128),
                (None, None, None, "fsdp"),
            ),
            (
                ("kernel_height", "kernel_width", "in", "out"),
                (3, 3, 512, 3),
                (None, None, "fsdp", None),
            ),
            (("in", "out"), (9, 1001), (None, None)),
            (("out",), (512,), (None,)),
            (("out",), (8192,), ("fsdp",)),
            ((), (), ()),
        ],
    )
    def test_the_first_rule_that_fits_takes_the_axis(self, names, shape, spec):
        assert spec_of(names, shape, parallel.make_mesh(2, 4)) == PartitionSpec(*spec)

    def test_a_table_of_ones_own(self):
        rules = (("in", "data"), ("out", "fsdp"))
        spec = spec_of(("in", "out"), (128, 128), parallel.make_mesh(2, 4), rules)
        assert spec == PartitionSpec("data", "fsdp")


class TestMesh:
    @pytest.mark.parametrize(
        ("data", "fsdp", "shape"),
        [(-1, 1, (8, 1)), (-1, 4, (2, 4)), (3, 2, (3, 2)), (1, 1, (1, 1))],
    )
    def test_its_shape(self, data, fsdp, shape):
        mesh = parallel.make_mesh(data, fsdp)
        assert mesh.devices.shape == shape
        assert mesh.axis_names == ("data", "fsdp")

    @pytest.mark.parametrize(
        ("data", "fsdp", "said"),
        [
            (9, 1, r"mesh\.data is 9; there are 8 devices, so it has to be 1 to 8, or -1"),
            (0, 1, r"mesh\.data is 0"),
            (5, 2, r"mesh\.data is 5; .* 1 to 4 with mesh\.fsdp = 2, or -1"),
            (1, 9, r"mesh\.fsdp is 9; there are 8 devices"),
            (1, 0, r"mesh\.fsdp is 0"),
        ],
    )
    def test_one_larger_than_the_machine_is_refused(self, data, fsdp, said):
        with pytest.raises(UserError, match=said):
            parallel.make_mesh(data, fsdp)

    def test_one_device_is_told_how_to_be_several(self):
        wanted = "mesh.fsdp is 4; there is 1 device, so it has to be 1 (XLA_FLAGS="
        with pytest.raises(UserError, match=re.escape(wanted)):
            parallel.make_mesh(-1, 4, devices=jax.devices()[:1])


def test_the_batch_is_split_over_all_devices():
    form = Run("jit", 2, 4).form
    batch = form.place(IMAGES[0])
    assert {shard.data.shape for shard in batch.addressable_shards} == {(BATCH // 8, SIDE, SIDE, 1)}
    np.testing.assert_array_equal(batch, IMAGES[0])


@pytest.mark.parametrize("name", ["jit", "shard_map", "pmap"])
def test_a_batch_is_a_tree_and_what_is_none_is_no_leaf(name):
    form = Run(name, 8, 1).form
    labels = np.arange(BATCH, dtype=np.int32)
    for batch in (Examples(IMAGES[0], labels), Examples(IMAGES[0], None)):
        told = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch)
        placed, abstract = form.place(batch), form.abstract_batch(told)
        assert (placed.labels is None) == (abstract.labels is None) == (batch.labels is None)
        for one, other, given in zip(*map(jax.tree.leaves, (placed, abstract, batch)), strict=True):
            assert (one.shape, one.dtype, one.sharding) == (
                other.shape,
                other.dtype,
                other.sharding,
            )
            np.testing.assert_array_equal(one.reshape(given.shape), given)


def test_a_compiled_step_moves_nothing_to_the_host_and_donates_its_state():
    run = Run("jit", 8, 1).go(1)
    before, placed = run.state, run.form.place(IMAGES[0])
    with jax.transfer_guard("disallow"):
        state, metrics = run.step(before, placed)
    assert np.isfinite(metrics.loss)
    assert jax.tree.leaves(before.params)[0].is_deleted()
    assert not jax.tree.leaves(state.params)[0].is_deleted()
