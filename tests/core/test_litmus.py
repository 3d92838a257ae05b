"""The litmus test on chains whose row is known, and its parts against other implementations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from marks import thorough_but
from mpmath import mp
from zoo import ADD, IMAGES, KEEP, ZOO, T, colours, harmonic_betas, vp

from ddpm_jax import bases, forward, processes
from ddpm_jax.litmus import laws, litmus, modes, program, simulate

QUICK = (
    *("DDPM", "betas per channel", "blurring, mirrored border", "shear"),
    *("exponential noise", "Laplace noise", "drift with 1e-3 sin(x)"),
)

LINES = []
"""The table of verdicts, printed by the last test: pytest -s tests/core/test_litmus.py."""


@functools.cache
def verdict(name, exact_up_to=64):
    animal = {**ZOO, **IMAGES}[name]
    return litmus(
        animal.step, animal.shape, T, jax.random.key(0), num_chains=256, exact_up_to=exact_up_to
    )


@pytest.mark.parametrize("name", thorough_but(QUICK, [*ZOO, *IMAGES]))
def test_the_row(name):
    animal, found = {**ZOO, **IMAGES}[name], verdict(name)
    e = found.evidence
    assert found.row == animal.row, str(found)
    if animal.process:
        assert type(found.process).__name__ == animal.process
    if animal.basis:
        assert e.basis == animal.basis
    if animal.law:
        assert e.law == animal.law
    assert all(p >= e.threshold for p in e.p_values.values())
    process = type(found.process).__name__.replace("NoneType", "none")
    detail = e.basis if found.row == "spectral" else e.law if "Gauss" in found.row else ""
    LINES.append(f"{name:<44}{found.row:<22}{process:<13}{detail:<11}{e.reason[:90]}")


def moments(process, shape, t):
    """Slope `[d, d]`, shift `[d]` and covariance `[d, d]` of x_t given x_0, from `q_sample`."""
    d = int(np.prod(shape))
    unit, none, times = jnp.eye(d).reshape(d, *shape), jnp.zeros((d, *shape)), jnp.full(d, t)

    def sample(x0, eps):
        rows = forward.q_sample(process, x0, times, eps)
        return np.asarray(rows, np.float64).reshape(d, d)

    shift = sample(none, none)
    root = sample(none, unit) - shift
    return (sample(unit, none) - shift).T, shift[0], root.T @ root


def true_moments(truth, t):
    """The same by the recursion of the chain, in float64."""
    d = truth[0].shape[-1]
    slope, shift, covariance = np.eye(d), np.zeros(d), np.zeros((d, d))
    for A, b, Q in list(zip(*truth, strict=True))[: t + 1]:
        slope, shift, covariance = A @ slope, A @ shift + b, A @ covariance @ A.T + Q
    return slope, shift, covariance


GAUSSIAN = [name for name, a in ZOO.items() if a.A is not None and a.row != "closed, not Gaussian"]


@pytest.mark.thorough
@pytest.mark.parametrize("name", GAUSSIAN)
def test_the_process_has_the_moments_of_the_chain(name):
    # Of the loops too, where noise of another law is added: mean and covariance are known there.
    animal, found = ZOO[name], verdict(name)
    process = found.evidence.same_moments if found.row == "loop" else found.process
    of_law = 3e-3 if found.row == "loop" else 0.0  # kinks cost the quadrature that much at most
    for t in (0, 7, T - 1):
        actual = moments(process, animal.shape, t)
        for value, expected in zip(actual, true_moments(animal.truth(), t), strict=True):
            np.testing.assert_allclose(
                value, expected, rtol=of_law, atol=2e-6 + 5e-6 * np.abs(expected).max()
            )


@pytest.mark.parametrize(
    ("name", "theta_0"),
    thorough_but(
        [("exponential noise", 0.1)], [("gamma noise, eps^2 - 1", 0.2), ("exponential noise", 0.1)]
    ),
)
def test_the_gamma_chain_is_the_one(name, theta_0):
    # sqrt(beta / 2) (eps^2 - 1) is Gamma(1/2) of the scale sqrt(2 beta), and beta = alpha_bar / 10;
    # an exponential's scale is its deviation, sqrt(beta).
    process = verdict(name).process
    np.testing.assert_allclose(process.schedule.betas, harmonic_betas, rtol=1e-5)
    assert float(process.theta_0) == pytest.approx(theta_0**0.5, rel=1e-5)


@pytest.mark.thorough
def test_images_are_read_by_probes():
    found = verdict("heat, images")
    assert found.evidence.method == "probes"
    modes = np.pi * np.arange(16) / 16
    keep = np.exp(-0.05 * (modes[:, None] ** 2 + modes**2))
    t = jnp.array([T - 1])
    signal, noise = (getattr(found.process, name)(t)[0, :, :, 0] for name in ("signal", "noise"))
    np.testing.assert_allclose(signal, keep**T, rtol=2e-5)
    np.testing.assert_allclose(
        np.square(noise), 0.01 * sum(keep ** (2 * i) for i in range(T)), rtol=2e-5
    )
    assert found.process.signal(t).shape == (1, 16, 16, 1)  # channels alike share a table


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    [
        *(
            "DDPM",
            "sub-VP",
            "anisotropy of 1e-3",
            "blurring, mirrored border",
            "bases that commute",
        ),
        *("shear", "sign flips", "bases that almost commute, 1e-3", "exponential noise"),
        *("noise turned by the sign of x", "noise folded onto another normal", "Cauchy noise"),
        *("drift with 1e-3 sin(x)", "noise that grows with x, 1e-3", "Laplace noise"),
    ],
)
def test_probes_and_jacobians_agree(name):
    assert verdict(name, exact_up_to=0).row == verdict(name).row


@pytest.mark.thorough
def test_a_basis_that_is_named():
    axes = np.kron(np.eye(256), colours.T)
    animal = IMAGES["mixed colours, images"]
    found = litmus(
        animal.step,
        animal.shape,
        T,
        jax.random.key(0),
        bases={"colours": bases.orthonormal(axes, (16, 16, 3))},
        num_chains=64,
    )
    assert found.row == "spectral"
    assert found.evidence.basis == "colours"
    np.testing.assert_allclose(
        found.process.transition_variance(jnp.array([3]), jnp.array([2]))[0, 5, 7],
        [0.05**2, 0.1**2, 0.2**2],
        rtol=1e-5,
    )


def hidden(x, eps, t):
    """A push that depends on the sum of all elements, in a window that the probes did not hit."""
    total = jnp.sum(x)
    return vp(x, eps, t) + jnp.where(jnp.abs(total - 0.5) < 0.01, 3.0, 0.0)


def test_simulation_has_the_last_word():
    found = litmus(hidden, (8,), T, jax.random.key(0), num_chains=2048)
    assert found.row == "loop"
    assert isinstance(found.process, processes.CustomChain)
    assert "simulation rejects what was derived (isotropic)" in found.evidence.reason
    assert min(found.evidence.p_values.values()) < found.evidence.threshold


@pytest.mark.thorough
def test_verdicts_read_well():
    for name in ("DDPM", "blurring, mirrored border", "shear", "Cauchy noise", "Laplace noise"):
        text = str(verdict(name))
        lines = text.splitlines()
        assert 8 <= len(lines) <= 13
        assert lines[0].split(maxsplit=1) == ["row", verdict(name).row]
        assert "of x_t given x_0" in text
        assert "nan" not in text


noise_of_its_own = np.random.default_rng(0)


def with_numpy(x, eps, t):
    return vp(x, eps, t) + 0.1 * jnp.asarray(noise_of_its_own.normal(size=8), jnp.float32)


def with_memory():
    last = [jnp.zeros(8)]

    def step(x, eps, t):
        x_t = vp(x, eps, t) + 0.1 * last[0]
        last[0] = eps
        return x_t

    return step


def with_count():
    calls = [0]

    def step(x, eps, t):
        calls[0] += 1
        return vp(x, eps, t) * calls[0]

    return step


def with_key(x, eps, t):
    return KEEP[t] * x + ADD[t] * jax.random.normal(jax.random.key(0), x.shape)


def with_folded_key(x, eps, t):
    return KEEP[t] * x + ADD[t] * jax.jit(jax.random.normal)(
        jax.random.fold_in(jax.random.key(0), t)
    )


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (with_numpy, ValueError, "something outside of its arguments"),
        (jax.jit(with_numpy), ValueError, "something outside of its arguments"),
        (with_memory(), ValueError, "array of an earlier call"),
        (with_count(), ValueError, "something outside of its arguments"),
        (with_key, ValueError, r"draws random numbers of its own \(random_bits, random_seed"),
        (with_folded_key, ValueError, "draws random numbers of its own"),
        (lambda x, eps, t: x[:4] + eps[:4], ValueError, "shape"),
        (lambda x, eps, t: x if t == 3 else eps, TypeError, "cannot be traced"),
        (lambda x, eps: x + eps, TypeError, "three arguments"),
        (lambda x, eps, t: (x + eps).astype(jnp.bfloat16), TypeError, "bfloat16"),
        (lambda x, eps, t: (x, eps), TypeError, "tuple"),
        (3, TypeError, "function"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_step_that_is_none_is_refused(step, error, message, without_annotation_checks):
    with pytest.raises(error, match=message):
        litmus(step, (8,), T, jax.random.key(0))


@jax.custom_vjp
def without_jvp(x):
    return 0.9 * x


without_jvp.defvjp(lambda x: (0.9 * x, None), lambda _, slope: (0.9 * slope,))


def called_back(x, eps, t):
    same = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return vp(x, jax.pure_callback(np.tanh, same, eps, vmap_method="sequential"), t)


def while_loop(x, eps, t):
    return vp(jax.lax.while_loop(lambda y: jnp.sum(y) > 1e3, lambda y: 0.5 * y, x), eps, t)


@pytest.mark.parametrize(
    ("step", "exact_up_to", "needs"),
    [
        (lambda x, eps, t: vp(without_jvp(x), eps, t), 64, "jvp: "),
        (called_back, 64, "jvp: "),
        (while_loop, 0, "jvp and vjp: "),
    ],
    ids=["custom_vjp", "callback", "while"],
)
def test_a_step_without_slopes_is_refused(step, exact_up_to, needs):
    with pytest.raises(TypeError, match=f"step cannot be linearized, which takes its {needs}"):
        litmus(step, (8,), T, jax.random.key(0), exact_up_to=exact_up_to)


@pytest.mark.thorough
@pytest.mark.parametrize("exact_up_to", [0, 64])
@pytest.mark.parametrize("shape", [(1,), (1, 1, 1), (2, 1)])
def test_the_smallest_samples(shape, exact_up_to):
    assert litmus(vp, shape, 2, jax.random.key(0), exact_up_to=exact_up_to).row == "isotropic"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"shape": ()}, ValueError, r"shape is \(\)"),
        ({"shape": (0,)}, ValueError, r"shape is \(0,\)"),
        ({"num_steps": 1}, ValueError, "num_steps is 1"),
        ({"key": jnp.zeros(2, jnp.uint32)}, TypeError, "key has dtype uint32"),
        ({"significance": 0.0}, ValueError, "significance is 0.0"),
        ({"num_chains": 10}, ValueError, "num_chains is 10"),
        ({"exact_up_to": -1}, ValueError, "exact_up_to is -1"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_arguments_are_checked(changes, error, message, without_annotation_checks):
    arguments = {"shape": (8,), "num_steps": T, "key": jax.random.key(0), **changes}
    with pytest.raises(error, match=message):
        litmus(vp, **arguments)


def test_a_step_may_be_compiled_and_shaped():
    found = litmus(jax.jit(vp), (2, 2, 2), T, jax.random.key(1), num_chains=64)
    assert found.row == "isotropic"


matrix = jnp.eye(8) + 0.1

AFFINE = {
    "stop_gradient": lambda x, e, t: x + jax.lax.stop_gradient(e),
    "dct": lambda x, e, t: bases.dct((0,)).to_modes((x + e)[None])[0],
    "fft": lambda x, e, t: jnp.fft.fft(x).real + e,
    "matmul": lambda x, e, t: matrix @ x + x @ matrix + jnp.einsum("i,ij->j", e, matrix),
    "tables": lambda x, e, t: KEEP[t] * x + jnp.where(t == 3, e, 2.0 * e) / (1.0 + ADD[t]),
    "shapes": lambda x, e, t: jnp.concatenate([x[4:], jnp.flip(e)[:4]]) - jnp.roll(x, 2),
    "cond": lambda x, e, t: jax.lax.cond(t > 3, lambda: x + e, lambda: 2.0 * x),
    "set": lambda x, e, t: x.at[2].set(e[0]).at[:3].add(x[5:]),
}
NOT_AFFINE = {
    "product": lambda x, e, t: x * e,
    "quotient": lambda x, e, t: 1.0 / x,
    "chosen by x": lambda x, e, t: jnp.where(x > 0.0, x, 2.0 * x),
    "taken at x": lambda x, e, t: e[jnp.argmax(x)] + x,
    "round": lambda x, e, t: jnp.round(x),
    "relu": lambda x, e, t: jax.nn.relu(x),
    "bfloat16": lambda x, e, t: x.astype(jnp.bfloat16).astype(jnp.float32),
    "branch by x": lambda x, e, t: jax.lax.cond(jnp.sum(x) > 0.0, lambda: x, lambda: e),
    "abs": lambda x, e, t: jnp.abs(jnp.fft.fft(x)),
    "matmul": lambda x, e, t: x * jnp.dot(x, e),
    "sort": lambda x, e, t: jnp.sort(x),
}


@pytest.mark.parametrize(("steps", "expected"), [(AFFINE, True), (NOT_AFFINE, False)])
def test_the_program_proves_only_what_is_affine(steps, expected):
    for name, step in steps.items():
        traced = jax.make_jaxpr(step)(jnp.zeros(8), jnp.zeros(8), jnp.int32(0))
        assert program.is_affine(traced) == expected, name


@pytest.mark.thorough
def test_tests_have_the_size_they_say():
    # 2000 samples of the null for each test; a binomial of p = 0.05 is within 4.4 deviations of
    # its mean, p < 1e-5. Bonferroni may only make them rarer.
    rng = np.random.default_rng(0)
    rejected = dict.fromkeys(("mean", "variance", "directions", "worst", "law"), 0)
    for _ in range(2000):
        for name, p in simulate.normal_p_values(rng.normal(size=(128, 3)), rng).items():
            rejected[name] += p < 0.05
    assert max(rejected.values()) < 2000 * 0.05 + 4.4 * (2000 * 0.05 * 0.95) ** 0.5
    assert rejected["variance"] > 2000 * 0.05 - 4.4 * (2000 * 0.05 * 0.95) ** 0.5


def test_tests_see_what_they_are_for():
    rng = np.random.default_rng(1)
    white = rng.normal(size=(4096, 4))
    tilted = white @ np.diag([1.0, 1.0, 1.0, 1.3])
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    uniform = 12.0**0.5 * (rng.random((4096, 4)) - 0.5)
    assert simulate.normal_p_values(white + 0.1, rng)["mean"] < 1e-6
    assert simulate.normal_p_values(1.05 * white, rng)["variance"] < 1e-6
    assert simulate.normal_p_values(tilted @ turn, rng)["worst"] < 1e-6
    assert simulate.normal_p_values(uniform, rng)["law"] < 1e-6
    assert set(simulate.normal_p_values(white * np.nan, rng).values()) == {0.0}


def test_p_values_are_those_of_the_smallest_samples():
    # One uniform u: P(D >= d) = 2 (1 - d), D = max(u, 1 - u). Of two normals x^2 + y^2 is
    # exponential, of mean 2.
    assert simulate.uniform_p_value(np.array([0.1])) == pytest.approx(0.2)
    assert simulate._variance_p_value(np.array([0.6, 0.8])) == pytest.approx(2 - 2 * np.exp(-0.5))
    assert simulate._variance_p_value(np.array([3.0, 4.0])) == pytest.approx(2 * np.exp(-12.5))


def test_laws_are_the_ones_of_the_books():
    z = np.array([-3.0, 0.0, 0.5, 4.0])
    gamma = [float(mp.gammainc(3, 0, max(x, 0), regularized=True)) for x in z]
    for name, shape, expected in (
        ("gamma", 3.0, gamma),
        ("Cauchy", 1.0, [float(0.5 + mp.atan(x) / mp.pi) for x in z]),
        ("normal", 1.0, [float(mp.ncdf(x)) for x in z]),
    ):
        np.testing.assert_allclose(laws.distribution(name, z, np.array(shape)), expected, rtol=1e-9)


def test_a_sum_of_gammas_is_one():
    # k_1 G_0 + G_1 with Gamma(1/2) and Gamma(2) of matching scales, against 10^5 draws.
    rng, keep = np.random.default_rng(3), np.array([[1.0], [0.5]])
    tables = [np.array(table)[:, None] for table in ([0.1, 0.2], [2.0, 1.0], [0.5, 2.0])]
    law = laws.Law("gamma", 0.0, *tables, *tables[:2], elements=np.arange(1))
    total = laws.sums(law, keep)
    draws = 0.5 * (0.1 + 2.0 * rng.gamma(0.5, size=100_000)) + 0.2 + rng.gamma(2.0, size=100_000)
    expected = scipy.stats.gamma(total.shape[1], total.location[1], total.scale[1])
    assert scipy.stats.kstest(draws, expected.cdf).pvalue > 1e-3
    assert laws.sums(law._replace(scale=law.scale * [[1.0], [1.01]]), keep) is None
    assert laws.sums(law, -keep) is None


def test_the_joint_eigenbasis_is_found():
    # Eigenvalues that agree in half of the matrices, and two that agree in all. So many modes that
    # any one combination of the matrices brings some together, and rounding turns those by 1e-4.
    rng, d = np.random.default_rng(4), 64
    basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
    values = rng.random((20, d)) * (rng.random((20, d)) < 0.5)
    values[:, 3] = values[:, 4]
    matrices = basis.T @ (values[:, :, None] * basis)
    found = modes.joint_eigenbasis(matrices.astype(np.float32).astype(np.float64), rng)
    turned = found @ matrices @ found.T
    assert np.abs(turned - turned * np.eye(d)).max() < 2e-7
    np.testing.assert_allclose(found @ found.T, np.eye(d), atol=1e-12)


def test_the_table_of_verdicts():
    """Last, because it prints what the others found: pytest -s."""
    rows = [line for line in LINES if line]
    print(f"\n{'chain':<44}{'row':<22}{'process':<13}{'by':<11}why")
    print(*rows, sep="\n")
