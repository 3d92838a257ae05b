"""What every public function of the core owes its callers.

Each runs under jit, traced once, vmap, grad and a sharded mesh of 8 devices with the same values,
and refuses an argument of the wrong dtype or shape by its name, while JAX traces.
"""

import collections
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import BATCH, CASES, ROOMS, STATIC, grey
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from marks import thorough_but

import ddpm_jax

TRACES = collections.Counter()
"""How often each case was traced by the compiled function of `on_a_mesh`."""


@functools.cache
def eager(name):
    """What a case returns without jit, which every program has to return, too."""
    return CASES[name].function(**CASES[name].arrays)


FEW = ("q_sample", "vlb_terms", "bits_per_dim", "sample, ancestral", "kl_full", "update_history")
"""A case of each kind, for what is as it is in all of them."""

PLAIN = [name for name in CASES if not name.endswith((", blurring", ", exploding"))]

few_functions = pytest.mark.parametrize("name", thorough_but(FEW, CASES))
every_function = pytest.mark.parametrize("name", thorough_but(PLAIN, CASES))
# The quick ones with all of XLA's optimizations, too: the others would compile for minutes.
few_optimized = pytest.mark.parametrize("name", thorough_but(FEW, CASES, pytest.mark.optimized))
every_optimized = pytest.mark.parametrize("name", thorough_but(PLAIN, CASES, pytest.mark.optimized))


def is_key(array):
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def named_arrays(select):
    return [
        pytest.param(case, array, id=f"{case}-{array}")
        for case in CASES
        for array in CASES[case].arrays
        if select(CASES[case], array)
    ]


def is_float(case, array):
    return jnp.issubdtype(case.arrays[array].dtype, jnp.floating)


def is_time(case, array):
    return jnp.issubdtype(case.arrays[array].dtype, jnp.integer)


def assert_close(actual, expected):
    """Equal but for the rounding of operations that a compiler fuses."""
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


def test_the_table_is_complete():
    public = {
        name
        for room in ROOMS
        for name in getattr(room, "__all__", vars(room))
        if inspect.isfunction(getattr(room, name))
    }
    assert public == {name.split(",")[0] for name in CASES} | STATIC
    names = {name for name in dir(ddpm_jax) if not name.startswith("_")} - {"load_run", "train"}
    assert {name for name in names if inspect.isfunction(getattr(ddpm_jax, name))} <= public


def turned(arrays):
    """Other arrays of the same shapes."""
    return {
        name: jax.random.fold_in(array, 1) if is_key(array) else array[::-1]
        for name, array in arrays.items()
    }


def differentiated(name):
    """A case's arrays, in a place where slopes are known, and the names of those that have one."""
    case = CASES[name]
    arrays = dict(case.arrays)
    floats = {array for array in arrays if is_float(case, array)}
    if arrays.get("x0") is grey:
        arrays["x0"] = 0.9 * grey  # off the border, where the outer bins open
    if name.startswith("hybrid_loss"):
        floats.remove("prediction")  # its gradient stops, on purpose
    if name == "discretized_log_likelihood":
        arrays["x"] = 0.9 * arrays["x"]
    return arrays, sorted(floats)


@few_optimized
def test_vmap_and_grad(name):
    """In one program: values beside another call's, and slopes, which are central differences."""
    case, (arrays, floats), step = CASES[name], differentiated(name), 2e-3
    directions = {
        array: jnp.asarray(np.cos(np.arange(arrays[array].size)), jnp.float32) for array in floats
    }

    def moved(array, sign):
        direction = sign * step * directions[array].reshape(arrays[array].shape)
        return arrays | {array: arrays[array] + direction}

    calls = [turned(case.arrays), case.arrays, arrays]
    calls += [moved(array, sign) for array in floats for sign in (1, -1)]
    stacked = jax.tree.map(lambda *each: jnp.stack(each), *calls)

    @jax.jit
    @jax.vmap
    def mapped(arrays):
        def total(floats):
            results = case.function(**(arrays | floats))
            return sum(jnp.mean(leaf) for leaf in jax.tree.leaves(results)), results

        if not floats:
            return jnp.nan, case.function(**arrays), {}
        slope_of = jax.value_and_grad(total, has_aux=True)
        (mean, results), slopes = slope_of({array: arrays[array] for array in floats})
        return mean, results, slopes

    means, results, slopes = mapped(stacked)
    assert_close(jax.tree.map(lambda leaf: leaf[1], results), eager(name))
    ends = np.asarray(means[3:], np.float64).reshape(-1, 2)
    for array, (ahead, behind) in zip(floats, ends, strict=True):
        slope = np.vdot(slopes[array][2], directions[array])
        # A sum of many large terms is rounded, and its differences more so.
        rounding = 16 * np.finfo(np.float32).eps * abs(ahead) / (2 * step)
        difference = (ahead - behind) / (2 * step)
        np.testing.assert_allclose(slope, difference, rtol=2e-2, atol=2e-3 + rounding)
        assert slope != 0.0


def on_a_mesh(name, axis_type):
    """A mesh of eight devices, a case's function, compiled, and what splits arrays over them."""
    mesh = jax.make_mesh((BATCH,), ("data",), axis_types=(axis_type,))
    whole = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec("data"))

    def counted(**arrays):
        TRACES[name, axis_type] += 1
        return CASES[name].function(**arrays)

    def place(arrays):
        return {
            name: jax.device_put(array, whole if is_key(array) else split)
            for name, array in arrays.items()
        }

    return mesh, jax.jit(counted, out_shardings=split), place


@every_optimized
def test_jit_over_eight_devices_in_one_trace(name):
    arrays = CASES[name].arrays
    mesh, function, place = on_a_mesh(name, AxisType.Auto)
    with jax.set_mesh(mesh):  # as a training script does; what is drawn inside is on it then
        result = function(**place(arrays))
        function(**place(turned(arrays)))
    assert TRACES[name, AxisType.Auto] == 1
    for leaf in jax.tree.leaves(result):
        assert len(leaf.sharding.device_set) == BATCH
        assert leaf.addressable_shards[0].data.shape[0] == 1
    assert_close(result, eager(name))


@few_functions
def test_explicit_axes_are_understood(name):
    """What cannot be sharded so is refused while tracing; the program is that of other axes."""
    if name == "kl_full" and jax.__version_info__ < (0, 10):
        pytest.skip("jnp.tril takes no explicit axes before jax 0.10")
    mesh, function, place = on_a_mesh(name, AxisType.Explicit)
    with jax.set_mesh(mesh):
        function.trace(**place(CASES[name].arrays))


def refuses(name, array, wrong, error):
    """While tracing, and by the argument's own name."""
    case = CASES[name]
    with pytest.raises(error, match=rf"\b{array} (has|is)"):
        jax.eval_shape(case.function, **(case.arrays | {array: wrong}))


@pytest.mark.parametrize(("name", "array"), named_arrays(is_float))
def test_integers_are_no_images(without_annotation_checks, name, array):
    pixels = jnp.zeros(CASES[name].arrays[array].shape, jnp.uint8)
    refuses(name, array, pixels, TypeError)


@pytest.mark.parametrize(
    ("name", "array"),
    named_arrays(lambda case, array: is_float(case, array) and array != case.like),
)
def test_shapes_that_would_broadcast_are_refused(without_annotation_checks, name, array):
    for shape in [(BATCH, 3, 1), (1, 3, 2), (3, 2), ()]:
        refuses(name, array, jnp.zeros(shape), ValueError)


@pytest.mark.parametrize(("name", "array"), named_arrays(is_time))
def test_times_are_integers_one_per_example(without_annotation_checks, name, array):
    refuses(name, array, jnp.zeros(BATCH), TypeError)
    for shape in [(), (BATCH, 1)] + [(BATCH + 1,)] * (array != CASES[name].like):
        refuses(name, array, jnp.zeros(shape, jnp.int32), ValueError)


@pytest.mark.parametrize(
    ("name", "array"), named_arrays(lambda case, array: is_key(case.arrays[array]))
)
def test_keys_are_typed_and_single(without_annotation_checks, name, array):
    refuses(name, array, jax.random.PRNGKey(0), TypeError)
    refuses(name, array, jax.random.split(jax.random.key(0), 2), ValueError)


@every_function
def test_python_numbers_are_no_arrays(without_annotation_checks, name):
    case = CASES[name]
    for array in case.arrays:
        with pytest.raises(TypeError, match=f"{array} is a int; it has to be an array"):
            case.function(**(case.arrays | {array: 3}))
