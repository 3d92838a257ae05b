"""Dense chains compiled, mapped, sharded and learned; and what is refused as one."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_affine import (
    STEPS,
    D,
    T,
    chain_of,
    images,
    symmetric_root,
)
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ddpm_jax.processes import NoClosedForm, affine_chain
from ddpm_jax.processes.roots import root_of_product, roots

BATCH = 8


def equations(jaxpr, times=1):
    """All of them, inner ones too, each with how often loops walk it."""
    for equation in jaxpr.eqns:
        yield equation, times
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner, times * equation.params.get("length", 1))


@pytest.mark.thorough
@pytest.mark.parametrize("transitions", [False, True])
def test_the_scan_is_log_many_compositions_deep(transitions):
    # Products of matrices, each over many steps at once: twice as many for a chain squared in
    # length, plus what does not depend on it, and no loop over time.
    found = {}
    for count in (32, 1024):
        arguments = [jax.ShapeDtypeStruct((count, *rest), jnp.float32) for rest in [(2, 2), (2,)]]
        build = functools.partial(affine_chain, transitions=transitions)
        jaxpr = jax.make_jaxpr(build)(*arguments, arguments[0])
        every = list(equations(jaxpr.jaxpr))
        found[count] = sum(n for each, n in every if each.primitive.name == "dot_general")
        assert all(each.params.get("length", 0) <= math.log2(count) for each, _ in every)
        assert not any(each.primitive.name == "while" for each, _ in every)
    assert found[1024] <= 2 * found[32]
    assert found[1024] < 200


@pytest.mark.thorough
def test_a_learned_chain_is_composed_while_traced():
    A, b, Q = (jnp.asarray(part, jnp.float32) for part in STEPS["regular"])
    rng = np.random.default_rng(9)
    x0, x_t, t = images(rng, BATCH), images(rng, BATCH), jnp.arange(BATCH) + 5
    s = t - 1 - jnp.arange(BATCH) // 2

    @jax.jit
    def posterior(A, b, Q):
        return affine_chain(A, b, Q).q_posterior(x0, x_t, t, s)

    expected = chain_of("regular").q_posterior(x0, x_t, t, s)
    for one, other in zip(posterior(A, b, Q), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("variance", [0.3, 0.0], ids=["equal eigenvalues", "no noise at t = 1"])
def test_gradients_of_a_learned_chain(variance):
    # Equal eigenvalues, where the derivative of an eigenvector does not exist, and a singular Q.
    # The reference: central differences of the same expression in float64.
    rng, count, d = np.random.default_rng(10), 4, 3
    A = rng.normal(size=(count, d, d))
    b, scale = rng.normal(size=(count, d)), np.full((count,), 0.3)
    scale[1] = variance
    x0, eps, weights = rng.normal(size=(3, 2, d))
    t = [1, 3]

    def total(A, b, scale):
        result = 0.0
        for i in range(2):
            M, m, C = np.eye(d), np.zeros(d), np.zeros((d, d))
            for k in range(t[i] + 1):
                M, m = A[k] @ M, A[k] @ m + b[k]
                C = A[k] @ C @ A[k].T + scale[k] * np.eye(d)
            result += weights[i] @ (M @ x0[i] + m + symmetric_root(C) @ eps[i])
        return result

    def found(A, b, scale):
        Q = scale[:, None, None] * jnp.eye(d)[None]
        chain = affine_chain(A, b, Q, transitions=False)
        f32 = [jnp.asarray(x, jnp.float32) for x in (x0, eps, weights)]
        return jnp.sum(f32[2] * chain.q_sample(f32[0], jnp.array(t), f32[1]))

    arguments = [A, b, scale]
    slopes = jax.jit(jax.grad(found, argnums=(0, 1, 2)))(
        *(jnp.asarray(x, jnp.float32) for x in arguments)
    )
    step = 1e-5
    for i, slope in enumerate(slopes):
        assert np.isfinite(slope).all()
        for index in np.ndindex(slope.shape):
            if i == 2 and variance == 0.0 and index == (1,):
                continue  # a variance has no slope on both sides of 0
            ends = []
            for sign in (1, -1):
                moved = [x.copy() for x in arguments]
                moved[i][index] += sign * step
                ends.append(total(*moved))
            np.testing.assert_allclose(
                slope[index], (ends[0] - ends[1]) / (2 * step), rtol=1e-3, atol=1e-4
            )


@pytest.mark.thorough
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_slopes_of_roots(rank):
    # Along covariances F F^T of one rank, two eigenvalues of which agree at rank 2: central
    # differences in float64.
    rng, step = np.random.default_rng(12), 1e-6
    F = np.linalg.qr(rng.normal(size=(D, D)))[0][:, :rank] * [1.0, 1.0, 0.5][:rank]
    move = rng.normal(size=(D, rank))

    def exact(h):
        values, vectors = np.linalg.eigh((F + h * move) @ (F + h * move).T)
        seen = values > 1e-8
        inverse = np.where(seen, np.where(seen, values, 1.0) ** -0.5, 0.0)
        deviations = np.sqrt(np.where(seen, values, 0.0))
        return [(vectors * each) @ vectors.T for each in (deviations, inverse, 1.0 - seen)]

    C, slope = (jnp.asarray(x, jnp.float32) for x in (F @ F.T, F @ move.T + move @ F.T))
    found = jax.jvp(roots, (C,), (slope,))
    expected = [(b - a) / (2 * step) for a, b in zip(exact(-step), exact(step), strict=True)]
    for value, at, tangent, difference in zip(
        *found[:1], exact(0.0), found[1], expected, strict=True
    ):
        np.testing.assert_allclose(value, at, atol=1e-5)
        np.testing.assert_allclose(tangent, difference, rtol=1e-3, atol=1e-4)

    wide = np.concatenate([F, np.zeros((D, 2 * D - rank))], axis=1)
    moved = np.concatenate([move, np.zeros((D, 2 * D - rank))], axis=1)
    f32 = [jnp.asarray(x, jnp.float32) for x in (wide, moved)]
    value, tangent = jax.jvp(root_of_product, f32[:1], f32[1:])
    np.testing.assert_allclose(value, exact(0.0)[0], atol=1e-6)
    np.testing.assert_allclose(tangent, expected[0], rtol=1e-3, atol=1e-4)


rng = np.random.default_rng(11)
X, Y, EPS = (images(rng, BATCH) for _ in range(3))
t = jnp.arange(BATCH, dtype=jnp.int32) + 12
s = t - 1 - 2 * jnp.arange(BATCH, dtype=jnp.int32)
CASES = {
    "q_sample": {"x0": X, "t": t, "eps": EPS},
    "q_step": {"x_prev": X, "t": t, "eps": EPS},
    "q_transition": {"x_s": X, "t": t, "s": s, "eps": EPS},
    "q_posterior": {"x0": X, "x_t": Y, "t": t, "s": s},
    "posterior_kl": {"x0": X, "x0_hat": Y, "t": t, "s": s},
    "marginal": {"t": t},
    "transition": {"t": t, "s": s},
}
every_method = pytest.mark.parametrize("method", CASES)


@functools.cache
def compiled(method):
    chain = chain_of("regular")
    return jax.jit(lambda arrays: getattr(chain, method)(**arrays))


def assert_close(actual, expected):
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


@pytest.mark.thorough
@every_method
def test_no_product_is_left_to_the_precision_of_a_device(method):
    # By default a TPU multiplies in bfloat16 and a GPU in TF32; a CPU would not show it.
    jaxpr = jax.make_jaxpr(compiled(method))(CASES[method]).jaxpr
    products = [each for each, _ in equations(jaxpr) if each.primitive.name == "dot_general"]
    exact = (jax.lax.Precision.HIGHEST,) * 2
    assert products
    assert all(each.params["precision"] == exact for each in products)


@pytest.mark.thorough
@every_method
def test_vmap_and_grad(method):
    arrays, function = CASES[method], compiled(method)
    stacked = {name: jnp.stack([array, array[::-1]]) for name, array in arrays.items()}
    mapped = jax.vmap(function)(stacked)
    for i in range(2):
        alone = function({name: array[i] for name, array in stacked.items()})
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], mapped), alone)
    floats = {name: x for name, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.floating)}

    def total(floats):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(function(arrays | floats)))

    for name, slope in jax.grad(total)(floats).items():
        direction = jnp.cos(jnp.arange(X.size, dtype=X.dtype)).reshape(X.shape)
        ahead, behind = (
            total(floats | {name: floats[name] + h * direction}) for h in (0.05, -0.05)
        )
        # Linear in each array, the KL quadratic: central differences of any step are exact.
        np.testing.assert_allclose(
            jnp.vdot(slope, direction), (ahead - behind) / 0.1, rtol=1e-3, atol=2e-3
        )


@pytest.mark.thorough
@every_method
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_sharded_over_eight_devices(method, axis_type):
    arrays, expected = CASES[method], compiled(method)(CASES[method])
    mesh = jax.make_mesh((BATCH,), ("data",), axis_types=(axis_type,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    # Noise that was drawn on the mesh is whole on every device.
    placed = {
        name: array if name == "eps" else jax.device_put(array, split)
        for name, array in arrays.items()
    }
    chain = chain_of("regular")
    with jax.set_mesh(mesh):
        function = jax.jit(
            lambda chain, arrays: getattr(chain, method)(**arrays), out_shardings=split
        )
        result = function(chain, placed)
    assert all(len(leaf.sharding.device_set) == BATCH for leaf in jax.tree.leaves(result))
    assert_close(result, expected)


@pytest.mark.thorough
def test_made_on_a_mesh_and_inside_of_jit():
    mesh = jax.make_mesh((BATCH,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        inside = jax.jit(lambda x: affine_chain(*STEPS["regular"]).q_sample(x, t, EPS))(X)
    assert_close(inside, compiled("q_sample")(CASES["q_sample"]))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(chain_of("regular")))


@pytest.mark.thorough
@pytest.mark.parametrize(("t", "s"), [(T, 3), (T + 40, 3), (5, 5), (4, 6), (5, -2), (-1, -2)])
def test_times_outside_give_nan(t, s):
    t, s, x = jnp.array([t, 4]), jnp.array([s, 2]), jnp.ones((2, D))
    chain = chain_of("regular")
    found = [*chain.q_posterior(x, x, t, s), chain.q_transition(x, t, s, x)]
    found.append(chain.posterior_kl(x, 2 * x, t, s))
    if not 0 <= int(t[0]) < T:
        found.append(chain.q_step(x, t, x))
        if t[0] != -1:
            found.append(chain.q_sample(x, t, x))
    for result in found:
        assert np.isnan(result[0]).all()
        assert np.isfinite(result[1]).all()


@pytest.mark.thorough
def test_the_result_keeps_the_dtype():
    x, t = jnp.ones((2, D), jnp.bfloat16), jnp.array([20, 20])
    chain = chain_of("regular")
    assert chain.q_sample(x, t, x).dtype == jnp.bfloat16
    wide = chain.q_sample(x.astype(jnp.float32), t, x.astype(jnp.float32))
    np.testing.assert_allclose(chain.q_sample(x, t, x).astype(jnp.float32), wide, rtol=4e-3)
    assert chain.q_posterior(x, x, t, t - 1)[0].dtype == jnp.bfloat16
    assert chain.posterior_kl(x, x, t, t - 1).dtype == jnp.float32


@pytest.mark.thorough
def test_without_transitions():
    chain = affine_chain(*STEPS["regular"], transitions=False)
    whole = chain_of("regular")
    np.testing.assert_array_equal(chain.q_sample(X, t, EPS), whole.q_sample(X, t, EPS))
    np.testing.assert_array_equal(chain.q_step(X, t, EPS), whole.q_step(X, t, EPS))
    np.testing.assert_array_equal(chain.posterior_kl(X, Y, t, s), whole.posterior_kl(X, Y, t, s))
    with pytest.raises(NoClosedForm, match=r"q_transition needs .*transitions=False; q_chain"):
        chain.q_transition(X, t, s, EPS)
    with pytest.raises(NoClosedForm, match="q_posterior needs"):
        chain.q_posterior(X, Y, t, s)


def wrong_q(entries):
    Q = np.stack([np.eye(2)] * 4)
    for index, value in entries.items():
        Q[index] = value
    return np.zeros((4, 2, 2)), np.zeros((4, 2)), Q


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (wrong_q({(2, 1, 1): -0.5}), r"Q\[2\] has the eigenvalue -0.5;"),
        (wrong_q({(1, 0, 1): 2.0, (1, 1, 0): 2.0}), r"Q\[1\] has the eigenvalue -1;"),
        (wrong_q({(1, 0, 1): 0.25}), r"Q\[1\] is not symmetric: \[0, 1\] is 0.25, \[1, 0\] 0"),
        (wrong_q({(3, 0, 0): np.nan}), r"Q\[3, 0, 0\] is nan"),
        (wrong_q({(3, 0, 0): 1e39}), r"Q\[3, 0, 0\] is 1e\+39; float32 has to hold it"),
        ((np.zeros((4, 2, 3)), np.zeros((4, 2)), np.zeros((4, 2, 2))), r"A has shape \(4, 2, 3\)"),
        ((np.zeros((2, 2)), np.zeros((4, 2)), np.zeros((4, 2, 2))), r"A has shape \(2, 2\)"),
        ((np.zeros((0, 2, 2)), np.zeros((0, 2)), np.zeros((0, 2, 2))), r"A has shape \(0, 2, 2\)"),
        ((np.zeros((4, 2, 2)), np.zeros((4, 1)), np.zeros((4, 2, 2))), r"b has shape \(4, 1\)"),
        ((np.zeros((4, 2, 2)), np.zeros((4, 2)), np.zeros((1, 2, 2))), r"Q has shape \(1, 2, 2\)"),
        (
            (np.stack([1e9 * np.eye(2)] * 9), np.ones((9, 2)), np.zeros((9, 2, 2))),
            "M at t = 4 is beyond float32",
        ),
        (
            (np.stack([1e4 * np.eye(2)] * 4), np.zeros((4, 2)), 1e30 * wrong_q({})[2]),
            "C at t = 2 is beyond float32",
        ),
        (
            (np.zeros((4, 2, 2)), np.zeros((4, 2)), 1e-78 * wrong_q({})[2]),
            "Q is so small",
        ),
    ],
)
def test_what_is_no_chain_is_refused(steps, message):
    with pytest.raises(ValueError, match=message):
        affine_chain(*steps)


def test_shapes_are_refused_while_traced_too():
    with pytest.raises(ValueError, match=r"b has shape \(3, 2\)"):
        jax.eval_shape(affine_chain, jnp.zeros((4, 2, 2)), jnp.zeros((3, 2)), jnp.zeros((4, 2, 2)))


@pytest.mark.parametrize(
    "method", [name for name in CASES if name not in ("marginal", "transition")]
)
def test_wrong_arguments_are_named(without_annotation_checks, method):
    chain, arrays = chain_of("regular"), CASES[method]
    first, *others = arrays
    wrong = {first: jnp.zeros((BATCH, 2, 2)), "t": jnp.zeros(BATCH + 1, jnp.int32)}
    for name in others:
        wrong.setdefault(name, jnp.zeros((BATCH, 1), arrays[name].dtype))
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=rf"\b{name} has shape"):
            getattr(chain, method)(**(arrays | {name: value}))
        with pytest.raises(TypeError, match=rf"\b{name} (has|is)"):
            getattr(chain, method)(**(arrays | {name: jnp.zeros(BATCH, jnp.uint8)}))
    with pytest.raises(ValueError, match=r"shape is \(4, 5\); .* matrices are 3 by 3"):
        chain.draw_noise(jax.random.key(0), (4, 5), t[:4])
    with pytest.raises(ValueError, match=r"t has shape \(8,\)"):
        chain.draw_noise(jax.random.key(0), (4, 3), t)
