"""One table of the core's public functions, and what every one of them owes its callers.

Each runs under jit, vmap, grad and a sharded mesh of 8 devices with the same values, and refuses
an argument of the wrong dtype or shape by its name, while JAX traces.
"""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import ddpm_jax
from ddpm_jax import (
    analytic,
    forward,
    gaussians,
    likelihood,
    losses,
    reverse,
    samplers,
    schedules,
    timesteps,
)

BATCH = 8
SCHEDULE = schedules.cosine(12)
LEVELS = 17
DATA = analytic.mixture([0.3, 0.7], [[0.5] * 6, [-0.2] * 6], [np.eye(6), np.diag([0.1, 0.3] * 3)])


class Case(NamedTuple):
    """A public function with what is static bound, and its arrays by name."""

    function: Callable
    arrays: dict
    like: str | None = None
    """The array whose shape the others have to have; a wrong one is theirs to report."""


def image(seed):
    return 0.5 * jax.random.normal(jax.random.key(seed), (BATCH, 3, 2))


def on_grid(seed):
    levels = jax.random.randint(jax.random.key(seed), (BATCH, 3, 2), 0, LEVELS)
    return jnp.linspace(-1.0, 1.0, LEVELS)[levels]


def positive(seed):
    return 0.5 + jnp.square(image(seed))


def factor(seed):
    """Lower-triangular matrices with a positive diagonal, one for each vector of an image."""
    a, b, c = positive(seed)[..., 0], image(seed + 1)[..., 0], positive(seed)[..., 1]
    return jnp.stack([jnp.stack([a, 0 * a], axis=-1), jnp.stack([b, c], axis=-1)], axis=-2)


def bind(function, **static):
    """`function` of the schedule and named arrays."""
    return lambda **arrays: function(SCHEDULE, **arrays, **static)


def draw_images(sampler):
    times = samplers.time_grid(SCHEDULE, 4)
    return lambda key, **start: samplers.sample(sampler, key, (BATCH, 3, 2), times, **start).x0


def bent(x_t, t):
    """A network whose slope depends on where it stands."""
    return 0.3 * x_t + 0.2 * jnp.sin(x_t)


def look_up(name):
    return lambda **times: getattr(SCHEDULE, name)(**times)


t, s = jnp.arange(BATCH, dtype=jnp.int32) + 2, jnp.arange(BATCH, dtype=jnp.int32) - 1
key = jax.random.key(5)
grey = on_grid(0)
prediction = {"prediction": image(2), "x0": grey}

CASES = {
    "q_sample": Case(bind(forward.q_sample), {"x0": image(0), "t": t, "eps": image(1)}, "x0"),
    "q_step": Case(bind(forward.q_step), {"x_prev": image(0), "t": t, "eps": image(1)}, "x_prev"),
    "q_chain": Case(bind(forward.q_chain, num_steps=3), {"key": key, "x0": image(0)}, "x0"),
    "q_posterior": Case(
        bind(forward.q_posterior), {"x0": image(0), "x_t": image(1), "t": t, "s": s}, "x0"
    ),
    "q_posterior_variance": Case(bind(forward.q_posterior_variance), {"t": t, "s": s}, "t"),
    "q_transition": Case(
        bind(forward.q_transition), {"x_s": image(0), "t": t, "s": s, "eps": image(1)}, "x_s"
    ),
    "convert": Case(
        bind(forward.convert, source="eps", target="v"),
        {"value": image(0), "x_t": image(1), "t": t},
        "value",
    ),
    "convert, score": Case(
        bind(forward.convert, source="score", target="x0"),
        {"value": image(0), "x_t": image(1), "t": t},
        "value",
    ),
    "fixed_variance": Case(bind(reverse.fixed_variance, variance="large"), {"t": t, "s": s}, "t"),
    "learned_log_variance": Case(
        bind(reverse.learned_log_variance),
        {"interpolation": image(0), "t": t, "s": s},
        "interpolation",
    ),
    "kl_diagonal": Case(
        gaussians.kl_diagonal,
        {
            "mean_q": image(0),
            "variance_q": positive(1),
            "mean_p": image(2),
            "variance_p": positive(3),
        },
        "mean_q",
    ),
    "kl_shared_variance": Case(
        gaussians.kl_shared_variance,
        {"mean_q": image(0), "mean_p": image(1), "variance": positive(2)},
        "mean_q",
    ),
    "kl_standardized": Case(
        gaussians.kl_standardized, {"error": image(0), "log_variance_ratio": image(1)}, "error"
    ),
    "entropy_diagonal": Case(gaussians.entropy_diagonal, {"variance": positive(0)}, "variance"),
    "log_density_diagonal": Case(
        gaussians.log_density_diagonal,
        {"x": image(0), "mean": image(1), "variance": positive(2)},
        "x",
    ),
    "kl_full": Case(
        gaussians.kl_full,
        {
            "mean_q": image(0),
            "cholesky_q": factor(1),
            "mean_p": image(2),
            "cholesky_p": factor(3),
        },
        "mean_q",
    ),
    "entropy_full": Case(gaussians.entropy_full, {"cholesky": factor(0)}, "cholesky"),
    "log_density_full": Case(
        gaussians.log_density_full,
        {"x": image(0), "mean": image(1), "cholesky": factor(2)},
        "x",
    ),
    "kl_to_standard_normal": Case(
        gaussians.kl_to_standard_normal,
        {"mean": image(0), "one_minus_variance": 0.3 * positive(1)},
        "mean",
    ),
    "discretized_log_likelihood": Case(
        lambda **arrays: gaussians.discretized_log_likelihood(**arrays, levels=LEVELS),
        {"x": on_grid(0), "mean": image(1), "standard_deviation": positive(2)},
        "x",
    ),
    "simple_loss": Case(
        bind(losses.simple_loss, predicts="v"), {**prediction, "t": t, "eps": image(1)}, "x0"
    ),
    "weighted_loss": Case(
        bind(losses.weighted_loss, predicts="v", weighting=losses.min_snr()),
        {**prediction, "t": t, "eps": image(1)},
        "x0",
    ),
    "error_weight": Case(
        bind(losses.error_weight, predicts="eps", weighting=losses.p2()), {"t": t}, "t"
    ),
    "kl_weight": Case(bind(losses.kl_weight, predicts="eps"), {"t": t}, "t"),
    "vlb_terms": Case(
        bind(losses.vlb_terms, predicts="eps", levels=LEVELS),
        {**prediction, "x_t": image(1), "t": t - 2},
        "x0",
    ),
    "vlb_terms, learned range": Case(
        bind(losses.vlb_terms, predicts="v", levels=LEVELS, variance="learned_range"),
        {**prediction, "x_t": image(1), "t": t - 2, "interpolation": image(3)},
        "x0",
    ),
    "hybrid_loss": Case(
        bind(losses.hybrid_loss, predicts="v", levels=LEVELS, vlb_weight=0.5),
        {
            **prediction,
            "interpolation": image(3),
            "x_t": image(1),
            "t": t - 2,
            "eps": image(4),
        },
        "x0",
    ),
    "elbo_loss": Case(
        bind(losses.elbo_loss, predicts="v", levels=LEVELS),
        {**prediction, "x_t": image(1), "t": t - 2},
        "x0",
    ),
    "prior_term": Case(bind(losses.prior_term), {"x0": grey}, "x0"),
    "bits_per_dim": Case(
        lambda **arrays: (
            likelihood.bits_per_dim(
                SCHEDULE, lambda x_t, t: 0.3 * x_t, **arrays, predicts="eps", levels=LEVELS
            ).total
        ),
        {"key": key, "x0": grey},
        "x0",
    ),
    "bits_per_dim, in chunks": Case(
        lambda **arrays: (
            likelihood.bits_per_dim(
                SCHEDULE,
                lambda x_t, t: (0.3 * x_t, 0.1 * x_t),
                **arrays,
                predicts="v",
                levels=LEVELS,
                chunk=5,
                variance="learned_range",
            ).total
        ),
        {"key": key, "x0": grey},
        "x0",
    ),
    "estimate_bits_per_dim": Case(
        bind(
            likelihood.estimate_bits_per_dim,
            predict=lambda x_t, t: 0.3 * x_t,
            predicts="v",
            levels=LEVELS,
            num_times=4,
            chunk=3,
        ),
        {"key": key, "x0": grey},
        "x0",
    ),
    "dequantize": Case(
        lambda **arrays: likelihood.dequantize(**arrays, levels=LEVELS),
        {"key": key, "x0": grey},
        "x0",
    ),
    "flow_bits_per_dim": Case(
        bind(
            likelihood.flow_bits_per_dim,
            predict=lambda x_t, t: 0.3 * jnp.tanh(x_t),
            times=samplers.time_grid(SCHEDULE, 4),
            predicts="v",
            levels=LEVELS,
            num_probes=2,
        ),
        {"key": key, "x0": grey},
        "x0",
    ),
    "update_history": Case(
        lambda t, losses: timesteps.update_history(
            timesteps.LossHistory(image(0)[..., 0], jnp.arange(BATCH, dtype=jnp.int32)), t, losses
        ),
        {"t": t - 2, "losses": positive(1)[:, 0, 0]},
        "losses",
    ),
    "probabilities": Case(
        lambda losses: (
            timesteps.probabilities(timesteps.LossHistory(losses, jnp.full(BATCH, 3)))
            * image(1)[:, 0, 0]
        ),
        {"losses": positive(0)[..., 0]},
        "losses",
    ),
    "importance": Case(
        lambda key: timesteps.importance(key, BATCH, jnp.linspace(0.01, 0.2, 12)), {"key": key}
    ),
    "uniform": Case(lambda key: timesteps.uniform(key, BATCH, 12), {"key": key}),
    "stratified": Case(lambda key: timesteps.stratified(key, BATCH, 12), {"key": key}),
    "sample, ancestral": Case(
        draw_images(samplers.ancestral(SCHEDULE, lambda x_t, t: 0.3 * x_t)), {"key": key}
    ),
    "sample, ddim": Case(
        draw_images(samplers.ddim(SCHEDULE, lambda x_t, t: 0.3 * x_t, eta=0.5)), {"key": key}
    ),
    "denoise": Case(
        lambda **arrays: analytic.denoise(DATA, SCHEDULE, **arrays, target="v"),
        {"x_t": image(0), "t": t},
        "x_t",
    ),
    "predictor": Case(
        lambda x_t, t: analytic.predictor(DATA, SCHEDULE, predicts="eps")(x_t, t),
        {"x_t": image(0), "t": t},
        "x_t",
    ),
    "log_density": Case(
        lambda **arrays: analytic.log_density(DATA, SCHEDULE, **arrays),
        {"x_t": image(0), "t": t - 3},
        "x_t",
    ),
    "sample, analytic": Case(lambda key: analytic.sample(DATA, key, (BATCH, 3, 2)), {"key": key}),
    "sample, dpm_solver_pp": Case(
        draw_images(samplers.dpm_solver_pp(SCHEDULE, bent, stochastic=True)), {"key": key}
    ),
    "sample, heun": Case(draw_images(samplers.heun(SCHEDULE, bent)), {"key": key}),
    "sample, from a start": Case(
        draw_images(samplers.probability_flow(SCHEDULE, bent, threshold=None)),
        {"key": key, "start": image(0)},
    ),
    "ddim_inversion": Case(
        lambda x0: samplers.ddim_inversion(
            SCHEDULE, bent, x0, samplers.time_grid(SCHEDULE, 4), iterations=2
        ),
        {"x0": image(0)},
        "x0",
    ),
    "inpaint": Case(
        lambda key, known, mask: draw_images(
            samplers.inpaint(
                samplers.dpm_solver_pp(SCHEDULE, bent, threshold=None),
                SCHEDULE,
                known,
                mask,
                resamplings=2,
            )
        )(key),
        {"key": key, "known": image(0), "mask": image(1) > 0.0},
        "known",
    ),
    "classifier_free": Case(
        samplers.guidance.classifier_free(
            bent, lambda x_t, t: 0.3 * x_t, scale=3.0, interval=(3, 6), rescale=0.5
        ),
        {"x_t": image(0), "t": t},
        "x_t",
    ),
    "classifier": Case(
        samplers.guidance.classifier(
            SCHEDULE, bent, lambda x_t, t: jnp.sum(jnp.sin(x_t), axis=(1, 2)), scale=2.0
        ),
        {"x_t": image(0), "t": t},
        "x_t",
    ),
    "static_threshold": Case(samplers.static_threshold, {"x0_hat": image(0)}, "x0_hat"),
    "dynamic_threshold": Case(
        samplers.dynamic_threshold(0.7), {"x0_hat": 4.0 * image(0)}, "x0_hat"
    ),
}

# Those that take no arrays, or make what does.
STATIC = {
    *("linear", "quadratic", "constant", "cosine", "sigmoid", "linear_log_snr"),
    *("from_betas", "from_alpha_bar", "from_log_snr"),
    *("zero_terminal_snr", "shifted", "respaced"),
    *("constant", "min_snr", "p2", "truncated_snr"),
    *("time_grid", "ancestral", "ddim", "dpm_solver_pp", "heun", "probability_flow"),
    "loss_history",
    *("gaussian", "mixture"),
    *("mean", "covariance", "entropy", "entropy_estimate", "elbo_terms"),  # nothing has a batch
    *("per_example", "data_axes", "widened", "check_predicts"),  # between rooms only
}

COMPILED = {name: jax.jit(case.function) for name, case in CASES.items()}

every_function = pytest.mark.parametrize("name", CASES)


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


@pytest.fixture(scope="module")
def value():
    """What each case gives, called plainly."""
    return {name: case.function(**case.arrays) for name, case in CASES.items()}


def test_the_table_is_complete():
    rooms = (
        *(schedules, gaussians, forward, reverse, timesteps),
        *(losses, likelihood, samplers, samplers.guidance, analytic),
    )
    public = {
        name
        for room in rooms
        for name in getattr(room, "__all__", vars(room))
        if inspect.isfunction(getattr(room, name))
    }
    assert public == {name.split(",")[0] for name in CASES} | STATIC
    handed_out = {name for name, item in vars(ddpm_jax).items() if inspect.isfunction(item)}
    assert handed_out <= public


@every_function
def test_jit(name, value):
    assert_close(COMPILED[name](**CASES[name].arrays), value[name])


@every_function
def test_vmap(name):
    case = CASES[name]
    keys = jax.random.split(key, 2)
    stacked = {
        name: keys if is_key(array) else jnp.stack([array, array[::-1]])
        for name, array in case.arrays.items()
    }
    mapped = jax.jit(jax.vmap(lambda arrays: case.function(**arrays)))(stacked)
    for i in range(2):
        alone = COMPILED[name](**{name: array[i] for name, array in stacked.items()})
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], mapped), alone)


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if any(is_float(case, a) for a in case.arrays)]
)
def test_grad(name):
    """The slope in each float array, along one direction, is that of central differences."""
    case = CASES[name]
    floats = {array: case.arrays[array] for array in case.arrays if is_float(case, array)}
    rest = {array: value for array, value in case.arrays.items() if array not in floats}
    if case.arrays.get("x0") is grey:
        floats["x0"] = 0.9 * floats["x0"]  # off the border, where the outer bins open
    if name == "hybrid_loss":
        rest["prediction"] = floats.pop("prediction")  # its gradient stops, on purpose
    if name == "discretized_log_likelihood":
        floats["x"] = 0.9 * floats["x"]

    def total(floats):
        leaves = jax.tree.leaves(case.function(**rest, **floats))
        return sum(jnp.mean(leaf) for leaf in leaves)

    compiled, step = jax.jit(jax.value_and_grad(total)), 2e-3
    slopes = compiled(floats)[1]
    for array, at in floats.items():
        direction = jnp.cos(jnp.arange(at.size, dtype=at.dtype)).reshape(at.shape)
        slope = jnp.vdot(slopes[array], direction)
        ahead, behind = (
            compiled(floats | {array: at + sign * step * direction})[0] for sign in (1, -1)
        )
        np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=2e-2, atol=2e-3)
        assert slope != 0.0


@every_function
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_sharded_over_eight_devices(name, axis_type, value):
    case = CASES[name]
    mesh = jax.make_mesh((BATCH,), ("data",), axis_types=(axis_type,))
    whole = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec("data"))
    placed = {
        name: jax.device_put(array, whole if is_key(array) else split)
        for name, array in case.arrays.items()
    }
    result = jax.jit(case.function, out_shardings=split)(**placed)
    for leaf in jax.tree.leaves(result):
        assert len(leaf.sharding.device_set) == BATCH
        assert leaf.addressable_shards[0].data.shape[0] == 1
    assert_close(result, value[name])


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
