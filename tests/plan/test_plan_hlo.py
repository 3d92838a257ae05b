"""Collectives read from compiled programs, against programs that say what they send."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from paths import HLO

from ddpm_jax.plan import groups, hlo

MESH = {"data": 4, "fsdp": 2}
ROWS, COLUMNS = 16, 256
"""Of one device's part of the arrays below."""


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def read(mesh, body, dtype=jnp.float32):
    """The collectives of `body`, a function of one device's part and with a part as its result."""
    split = PartitionSpec(("data", "fsdp"))
    program = jax.jit(
        jax.shard_map(body, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
    )
    x = jax.ShapeDtypeStruct((8 * ROWS, COLUMNS), dtype)
    return hlo.collectives(program.lower(x).compile().as_text(), MESH)


def gathered(axis):
    return lambda x: jax.lax.all_gather(x, axis, tiled=True)[:ROWS]


def scattered(axis, size):
    def body(x):
        part = jax.lax.psum_scatter(x, axis, scatter_dimension=1, tiled=True)
        return jnp.tile(part, (1, size))

    return body


def passed_on(axis, size):
    pairs = [(i, (i + 1) % size) for i in range(size)]
    return lambda x: jax.lax.ppermute(x, axis, pairs)


def exchanged(axis):
    return lambda x: jax.lax.all_to_all(x, axis, 0, 0, tiled=True)


PART = ROWS * COLUMNS * 4
WHOLE = 1024 * 2048 * 4
PROGRAMS = {
    "psum data": (lambda x: jax.lax.psum(x, "data"), "all-reduce", "data", 4, PART),
    "psum fsdp": (lambda x: jax.lax.psum(x, "fsdp"), "all-reduce", "fsdp", 2, PART),
    "psum": (lambda x: jax.lax.psum(x, ("data", "fsdp")), "all-reduce", "data+fsdp", 8, PART),
    "pmax": (lambda x: jax.lax.pmax(x, "data"), "all-reduce", "data", 4, PART),
    "gather data": (gathered("data"), "all-gather", "data", 4, 4 * PART),
    "gather fsdp": (gathered("fsdp"), "all-gather", "fsdp", 2, 2 * PART),
    "scatter data": (scattered("data", 4), "reduce-scatter", "data", 4, PART),
    "scatter fsdp": (scattered("fsdp", 2), "reduce-scatter", "fsdp", 2, PART),
    "ring": (passed_on("data", 4), "collective-permute", "data", 2, PART),
    "exchange": (exchanged("fsdp"), "all-to-all", "fsdp", 2, PART),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("dtype", ["f32", "s32"])
def test_one_collective(mesh, name, dtype):
    body, *expected, size = PROGRAMS[name]
    (found,) = read(mesh, body, {"f32": jnp.float32, "s32": jnp.int32}[dtype])
    assert (found.kind, found.axis, found.devices, found.bytes) == (*expected, size)
    assert (found.dtype, found.times, found.slices, found.counted) == (dtype, 1, 1, True)


@pytest.mark.parametrize("name", ["psum data", "gather fsdp", "scatter fsdp", "ring"])
def test_in_loops_each_turn_counts(mesh, name):
    body, *_, size = PROGRAMS[name]

    def loops(x):
        def turn(x, _):
            x, _ = jax.lax.scan(lambda x, _: (jnp.sin(body(x)), None), x, None, length=3)
            return x + 1.0, None

        return jnp.cos(body(jax.lax.scan(turn, x, None, length=5)[0]))

    (found,) = read(mesh, loops)
    assert (found.times, found.bytes) == (16, 16 * size)
    assert found.counted


def test_a_loop_of_unknown_length_is_said_to_be_one(mesh):
    def body(x):
        more = lambda state: jnp.sum(state) < 100.0  # noqa: E731
        return jax.lax.while_loop(more, lambda x: jax.lax.psum(x, "data") + 1.0, x)

    (found,) = read(mesh, body)
    assert (found.times, found.bytes, found.counted) == (1, PART, False)


def test_kinds_dtypes_and_axes_are_summed_apart(mesh):
    def body(x):
        count = jax.lax.psum(x.astype(jnp.int32), "data").astype(jnp.float32)
        both = jax.lax.psum(jnp.sin(x), "data") + jax.lax.psum(jnp.cos(x), "fsdp")
        return both + count

    found = {(row.dtype, row.axis): row.bytes for row in read(mesh, body)}
    assert found == {("f32", "data"): PART, ("f32", "fsdp"): PART, ("s32", "data"): PART}


def saved(name):
    return (HLO / f"{name}.txt").read_text()


def as_dict(rows):
    return {(row.kind, row.dtype, row.axis): (row.bytes, row.times) for row in rows}


def test_a_tpu_program_with_its_collectives_written_out():
    """Of v5e:2x4. In shard_map, x [16, 512] and w [256, 512], bfloat16, on each device:

    a psum over data; w gathered over fsdp; five times in a scan: psum_scatter and all_gather over
    fsdp, psum over data and over fsdp; then a permutation and all_to_all over data, and a psum in
    float32 over all.
    """
    x, w = 2 * 16 * 512, 2 * 512 * 512
    assert as_dict(hlo.collectives(saved("v5e_explicit"), MESH)) == {
        ("all-gather", "bf16", "fsdp"): (w + 5 * x, 6),
        ("all-reduce", "bf16", "data"): (6 * x, 6),
        ("all-reduce", "bf16", "fsdp"): (5 * x, 5),
        ("reduce-scatter", "bf16", "fsdp"): (5 * x, 5),
        ("all-reduce", "f32", "data+fsdp"): (2 * x, 1),
        ("all-to-all", "bf16", "data"): (x, 1),
        ("collective-permute", "bf16", "data"): (x, 1),
    }


@pytest.mark.parametrize(
    ("name", "dtype", "size"),
    [("v5e_placed", "f32", 4), ("v5e_placed_older", "f32", 4), ("v5e_overlapped", "bf16", 2)],
)
def test_a_tpu_program_with_its_collectives_placed(name, dtype, size):
    """Of v5e:2x4. The gradient of two layers [512, 512], split over fsdp, for 64 examples.

    Both layers are gathered, and so are the 16 examples that two devices share; both gradients are
    scattered over fsdp, in a fusion that holds an all-reduce, and summed over data, each device its
    half. The third program is one of the usual level of optimization, which overlaps the gathers
    with work, in fusions that hold each of them three times, and converts first.
    """
    layers, activations = 2 * 512 * 512, 16 * 512
    found = as_dict(hlo.collectives(saved(name), MESH))
    assert found.pop(("all-to-all", "f32", "fsdp")) == (4 * 8 * 512, 1)
    assert found == {
        ("all-gather", dtype, "fsdp"): (size * (layers + activations), 3),
        ("reduce-scatter", "f32", "fsdp"): (4 * layers, 1),
        ("all-reduce", "f32", "data"): (4 * layers // 2, 1),
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "psum_data",
            {
                ("reduce-scatter", 4, 1): WHOLE,
                ("all-reduce", 2, 2): WHOLE // 4,
                ("all-gather", 4, 1): WHOLE,
            },
        ),
        ("gather_data", {("all-gather", 2, 2): 2 * WHOLE, ("all-gather", 4, 1): 8 * WHOLE}),
        ("scatter_data", {("all-reduce", 4, 1): WHOLE, ("reduce-scatter", 2, 2): WHOLE // 4}),
    ],
)
def test_a_tpu_program_of_two_slices(name, expected):
    """Of 2xv5e:2x4, data 8 and fsdp 2: one collective over data of [1024, 2048] on each device.

    Each of four devices of a slice that share a group has a quarter to exchange with the other
    slice. A gather crosses first, and twice as much is then gathered in the slice.
    """
    slice_of = [0] * 8 + [1] * 8
    mesh = {"data": 8, "fsdp": 2}
    rows = hlo.collectives(saved(f"2xv5e_{name}"), mesh, slice_of=slice_of, across="data")
    assert {(row.kind, row.devices, row.slices): row.bytes for row in rows} == expected
    assert {(row.axis, row.dtype, row.times) for row in rows} == {("data", "f32", 1)}
    crossing = sum(row.network_bytes for row in rows)
    # The least that there is: Patarasu & Yuan 2009, of two groups of four.
    least = {"psum_data": 2 / 2 * WHOLE / 4, "gather_data": WHOLE, "scatter_data": WHOLE / 8}
    assert crossing == least[name]


@pytest.mark.parametrize(
    ("type_", "operands", "expected"),
    [
        ("f32[100]{0}", "%a", 400),
        ("((f32[100]{0}), f32[100]{0})", "%a", 400),
        ("(f32[100]{0}, f32[50]{0})", "%a, %b", 600),
        ("((f32[100]{0}, f32[50]{0}), (f32[100]{0}, f32[50]{0}))", "%a, %b", 600),
    ],
)
def test_the_first_half_of_a_gpus_all_reduce(type_, operands, expected):
    """Its type is of the result alone, or of what goes in, too, as releases of XLA differ."""
    text = (
        "ENTRY %main (a: f32[100]) -> f32[100] {\n"
        f"  %start = {type_} all-reduce-start({operands}), channel_id=1,"
        " replica_groups={{0,1,2,3,4,5,6,7}}, use_global_device_ids=true, to_apply=%add\n"
        "  %done = f32[100]{0} all-reduce-done(%start)\n"
        "}\n"
    )
    (found,) = hlo.collectives(text, MESH)
    assert (found.axis, found.bytes, found.times) == ("data+fsdp", expected, 1)


@pytest.mark.parametrize(
    ("said", "members"),
    [
        ("replica_groups={}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups=[4,2]<=[8]", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("replica_groups=[4,2]<=[2,2,2]T(0,2,1)", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("replica_groups=mesh['data'=4,'fsdp'=2] {'fsdp'}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups=mesh['data'=4,'fsdp'=2] {'data'}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("replica_groups=mesh['a'=4,'b'=2] {'a','b'}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        (
            "replica_groups=mesh['a'=2,'b'=1,'c'=4], device_ids=([4,2]T(1,0)) {'c'}",
            [[0, 2, 4, 6], [1, 3, 5, 7]],
        ),
        (
            "replica_groups=mesh['a'=2,'b'=4], device_ids=(7,6,5,4,3,2,1,0) {'a'}",
            [[7, 3], [6, 2], [5, 1], [4, 0]],
        ),
        ("replica_groups=mesh['x'=8] {'x':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("replica_groups=mesh['x'=8] {'x':(1)4}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("source_target_pairs={{0,2},{2,0}}", [[0, 2], [2, 0]]),
    ],
)
def test_the_ways_to_say_groups(said, members):
    line = f"  %x = f32[2]{{0}} all-reduce(%y), channel_id=1, {said}, use_global_device_ids=true"
    assert sorted(map(sorted, groups.of(line, 8))) == sorted(map(sorted, members))


def test_axes_of_a_mesh_of_three():
    mesh = {"a": 2, "b": 3, "c": 2}
    grid = np.arange(12).reshape(2, 3, 2)
    for axes in itertools.chain.from_iterable(
        itertools.combinations(range(3), count) for count in (1, 2, 3)
    ):
        along = math.prod(grid.shape[axis] for axis in axes)
        members = np.moveaxis(grid, axes, range(-len(axes), 0)).reshape(-1, along)
        assert groups.axis_of(members.tolist(), mesh) == "+".join("abc"[axis] for axis in axes)
    assert groups.axis_of([[0, 2], [1, 3]], mesh) == "other"  # a part of b
    assert groups.axis_of([[0, 2], [2, 4]], mesh, pairs=True) == "b"


def sent_around_a_ring(kind, n, size):
    """Bytes that one of `n` devices sends, played step by step with chunks around a ring."""
    chunk, sent = size / n, 0.0
    if kind in ("all-reduce", "reduce-scatter"):
        sent += sum(chunk for _ in range(n - 1))
    if kind in ("all-reduce", "all-gather"):
        sent += sum(chunk for _ in range(n - 1))
    if kind == "all-to-all":
        sent += sum(chunk for other in range(n) if other != 0)
    return sent


@pytest.mark.parametrize("kind", ["all-reduce", "all-gather", "reduce-scatter", "all-to-all"])
@pytest.mark.parametrize(("n", "slices"), [(2, 1), (8, 1), (8, 2), (8, 4), (8, 8)])
def test_what_is_sent(kind, n, slices):
    """Inside a slice around its ring; between slices each device with its share of the array."""
    row = hlo.Collective(kind, "f32", "data", n, slices, 1024, 1)
    inside = n // slices
    assert row.link_bytes == pytest.approx(sent_around_a_ring(kind, inside, 1024))
    assert row.network_bytes == pytest.approx(sent_around_a_ring(kind, slices, 1024 / inside))


def test_groups_over_slices_are_apart(mesh):
    def body(x):
        return jax.lax.psum(x, "data") + jax.lax.psum(jnp.sin(x), "fsdp")

    split = PartitionSpec(("data", "fsdp"))
    x = jax.ShapeDtypeStruct((8 * ROWS, COLUMNS), jnp.float32)
    program = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=split, out_specs=split))
    text = program.lower(x).compile().as_text()
    rows = hlo.collectives(text, MESH, slice_of=[0] * 4 + [1] * 4)
    assert {row.axis: row.slices for row in rows} == {"data": 2, "fsdp": 1}
