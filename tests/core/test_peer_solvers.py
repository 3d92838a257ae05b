"""Beside diffusers, as in `test_peers`: solvers of higher order, and chains of rectified flow.

Both get the same tables and the same x0_hat, that of the best denoiser of Gaussian data.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import chain, float64
from peers import KEY, NAMES, SHAPE, T, diffusers, noise_of, schedule_of, to_torch

from ddpm_jax import schedules
from ddpm_jax.samplers import ddim, dpm_solver_pp, dpm_solver_pp_single, unipc

# NumPy's, of how their schedulers hand it tensors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.thorough,
]

MEAN, DEVIATION = 0.3, 0.5
START = np.float32(np.random.default_rng(0).normal(size=SHAPE))
FLOW = "rectified_flow"
FLOW_TIMES = [*range(998, 0, -111)]
"""Nine steps of theirs fall on thousandths. They begin at 0.999, where there is some signal."""
TOLERANCE = 2e-5
"""Relative to the largest value: their float32 has fewer digits than ours at the ends."""


@functools.cache
def weights(name):
    """a and b in float64."""
    if name == FLOW:
        u = np.arange(1, T + 1) / T
        return 1.0 - u, u
    tables = chain(name, T)
    return np.sqrt(float64(tables.alpha_bar)), np.sqrt(float64(tables.noise_power))


def x0_hat(name, x, t):
    a, b = (table[t] for table in weights(name))
    gain = a * DEVIATION**2 / (a**2 * DEVIATION**2 + b**2)
    return gain * x + MEAN * (1.0 - a * gain)


def ours(name, make, times, keys=None, **options):
    """x after each step of `times`, the last of which is -1."""
    a, b = (jnp.asarray(table, jnp.float32) for table in weights(name))

    def predict(x_t, t):
        a_t, b_t = a[t].reshape(-1, 1, 1), b[t].reshape(-1, 1, 1)
        gain = a_t * DEVIATION**2 / (a_t**2 * DEVIATION**2 + b_t**2)
        return gain * x_t + MEAN * (1.0 - a_t * gain)

    schedule = schedules.rectified_flow(T) if name == FLOW else schedule_of(name, T)
    sampler = make(schedule, predict, predicts="x0", threshold=None, **options)
    step, state, path = jax.jit(sampler.step), sampler.init(KEY, SHAPE, jnp.asarray(START)), []
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        state, _ = step(KEY if keys is None else keys[i], state, jnp.int32(t), jnp.int32(s))
        path.append(np.asarray(state.x_t, np.float64))
    return path


def theirs(name, peer, noises=None):
    """x after each of their steps, and the times that they took."""
    x_t, path = to_torch(START), []
    times = FLOW_TIMES if name == FLOW else [int(t) for t in peer.timesteps]
    for i, t in enumerate(times):
        output = x0_hat(name, x_t.numpy().astype(np.float64), t)
        if name == FLOW:
            output = (x_t.numpy() - output) / weights(name)[1][t]  # the velocity
        more = {} if noises is None else {"variance_noise": to_torch(noises[i])}
        x_t = peer.step(to_torch(output), peer.timesteps[i], x_t, **more).prev_sample
        path.append(x_t.numpy().astype(np.float64))
    return path, [*times, -1]


def difference(one, other):
    """The largest over the steps, relative to the largest value of each."""
    pairs = zip(one, other, strict=True)
    return np.max([np.abs(x - y).max() / np.maximum(np.abs(y).max(), 1.0) for x, y in pairs])


def judge(name, found, within=TOLERANCE):
    print(f"{name}: largest relative difference {found:.1e}")
    assert found < within


def scheduler(peer, name, steps, **options):
    arguments = {"prediction_type": "sample", "timestep_spacing": "linspace"} | NAMES.get(name, {})
    if name == FLOW:
        arguments |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    if "Single" in peer:
        del arguments["timestep_spacing"]
    made = getattr(diffusers, peer)(T, **arguments, **options)
    if name == FLOW and "UniPC" in peer:
        made.set_timesteps(sigmas=(np.array(FLOW_TIMES) + 1) / T)
    else:
        made.set_timesteps(steps)
    return made


@pytest.mark.parametrize("steps", [5, 9, 30])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_unipc(name, order, variant, steps):
    # Their last step but one is of order 2 at most, which the paper does not say of solvers. Onto
    # the data B(h) of "bh1" is infinite, and theirs is NaN: infinity times the 0 of first order.
    options = {"solver_order": order, "solver_type": variant}
    peer = scheduler("UniPCMultistepScheduler", name, steps, **options)
    expected, times = theirs(name, peer)
    found = ours(name, unipc, times, order=order, variant=variant)
    assert np.isnan(expected[-1]).any() == (variant == "bh1")
    assert np.isfinite(found).all()
    same = slice(steps - 2 if order == 3 else steps - (variant == "bh1"))
    judge(f"UniPC {order} {variant}, {name}, {steps}", difference(found[same], expected[same]))


@pytest.mark.parametrize("steps", [5, 6, 7, 9, 30])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_single_step_of_any_number(name, order, steps):
    # Order 3 takes x0_hat's mean over the step in all stages, which they call "heun".
    peer = scheduler(
        "DPMSolverSinglestepScheduler",
        name,
        steps,
        solver_order=order,
        solver_type="midpoint" if order == 2 else "heun",
        lower_order_final=True,
        lambda_min_clipped=-np.inf,
    )
    expected, times = theirs(name, peer)
    found = ours(name, dpm_solver_pp_single, times, order=order)
    judge(f"single step {order}, {name}, {steps}", difference(found, expected))


def third_order(name, times, noises, quadratic):
    """3M in float64; `quadratic` changes the integral that the parabola's curve is weighed by."""
    a, b = (np.append(table, end) for table, end in zip(weights(name), (1.0, 0.0), strict=True))
    lam, pace = np.log(a / np.maximum(b, 1e-300)), 1 if noises is None else 2
    x, seen, path = START, [], []
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        seen = [(lam[t], x0_hat(name, x, t)), *seen][:3]
        (_, d), h = seen[0], lam[s] - lam[t]
        if s != -1 and len(seen) > 1:
            slopes = [(p - q) / (at - to) for (at, p), (to, q) in itertools.pairwise(seen)]
            # Integrals of exp(z (u - 1)) z u^k over u from 0 to 1, of k = 0, 1, 2.
            z = pace * h
            whole = -np.expm1(-z)
            line = 1.0 - whole / z
            curve = quadratic(1.0 - 2.0 * line / z)
            if len(seen) == 2:
                d = d + h / 2 * slopes[0]
            else:
                bend = (slopes[0] - slopes[1]) / (seen[0][0] - seen[2][0])
                slope = slopes[0] + bend * (seen[0][0] - seen[1][0])
                d = d + (h * slope * line + h**2 * bend * curve) / whole
        decay = np.exp(-pace * h) if s != -1 else 0.0
        x = b[s] / b[t] * (np.exp(-h) if noises is not None else 1.0) * x + a[s] * (1 - decay) * d
        if noises is not None:
            x = x + b[s] * np.sqrt(1 - decay) * noises[i]
        path.append(x)
    return path


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_half_of_the_parabola_is_missing_in_their_third_order(name, stochastic):
    # Their D2 is half of h^2 times the second derivative, and is halved once more. With noise their
    # weight of it also has a wrong sign, -1/2 for 1/2, and does not vanish as the steps do; that of
    # k-diffusion has not. With these changes float64 is theirs, and without them ours.
    steps = 20
    algorithm = "sde-dpmsolver++" if stochastic else "dpmsolver++"
    peer = scheduler(
        "DPMSolverMultistepScheduler",
        name,
        steps,
        solver_order=3,
        algorithm_type=algorithm,
        lambda_min_clipped=-np.inf,
    )
    keys = list(jax.random.split(KEY, steps)) if stochastic else None
    noises = [noise_of(key) for key in keys] if stochastic else None
    expected, times = theirs(name, peer, noises)
    found = ours(name, dpm_solver_pp, times, keys, order=3, stochastic=stochastic)
    half = third_order(name, times, noises, lambda curve: curve / 2 - stochastic)
    whole = third_order(name, times, noises, lambda curve: curve)
    judge(f"3M of theirs and half, {algorithm}, {name}", difference(expected, half))
    judge(f"3M of ours and whole, {algorithm}, {name}", difference(found, whole), 5e-6)
    apart = difference(expected, found)
    print(f"3M of theirs and ours, {algorithm}, {name}: {apart:.1e}")
    assert apart > 1e-3


@pytest.mark.parametrize("name", ["linear", "cosine", FLOW])
def test_third_order_is_their_predictor_of_unipc(name):
    steps = 9 if name == FLOW else 20
    peer = scheduler(
        "UniPCMultistepScheduler", name, steps, solver_order=3, disable_corrector=[*range(steps)]
    )
    expected, times = theirs(name, peer)
    found = ours(name, dpm_solver_pp, times, order=3)
    judge(f"3M and UniP-3, {name}", difference(found[: steps - 2], expected[: steps - 2]))


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_unipc_without_corrector_is_dpm_solver(name):
    times = [999, 800, 650, 500, 350, 200, 100, 50, 20, 0, -1]
    for order in (1, 2, 3):
        one = ours(name, unipc, times, order=order, corrector=False)
        judge(f"UniP-{order}", difference(one, ours(name, dpm_solver_pp, times, order=order)), 1e-6)


@pytest.mark.parametrize(
    ("peer", "options", "make", "arguments"),
    [
        ("DPMSolverMultistepScheduler", {}, dpm_solver_pp, {}),
        ("DPMSolverSinglestepScheduler", {"lower_order_final": True}, dpm_solver_pp_single, {}),
        (
            "DPMSolverSinglestepScheduler",
            {"lower_order_final": True, "solver_order": 3, "solver_type": "heun"},
            dpm_solver_pp_single,
            {"order": 3},
        ),
        ("UniPCMultistepScheduler", {}, unipc, {"order": 2}),
        ("UniPCMultistepScheduler", {"solver_type": "bh1"}, unipc, {"order": 2, "variant": "bh1"}),
    ],
)
def test_on_rectified_flow(peer, options, make, arguments):
    expected, times = theirs(FLOW, scheduler(peer, FLOW, 9, **options))
    found = ours(FLOW, make, times, **arguments)
    same = slice(len(found) - (options.get("solver_type") == "bh1"))  # where theirs is NaN
    judge(f"{peer} {options}, rectified flow", difference(found[same], expected[same]))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_of_flow_matching_is_ddim(shift):
    # Out of pure noise and onto the data, at any times of a shifted chain.
    times = [999, 900, 650, 400, 250, 120, 30, 3, -1]
    u = np.arange(1, T + 1) / T
    u = shift * u / (1 + (shift - 1) * u)
    peer = diffusers.FlowMatchEulerDiscreteScheduler(T)
    peer.set_timesteps(sigmas=list(u[times[:-1]]))
    schedule = schedules.rectified_flow(T, shift)

    def predict(x_t, t):
        return 0.9 * jnp.tanh(1.5 * x_t + 0.1)

    sampler = ddim(schedule, predict, predicts="x0", threshold=None)
    step, state = jax.jit(sampler.step), sampler.init(KEY, SHAPE, jnp.asarray(START))
    x_t, found, expected = to_torch(START), [], []
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        state, _ = step(KEY, state, jnp.int32(t), jnp.int32(s))
        velocity = (x_t.numpy() - np.asarray(predict(jnp.asarray(x_t.numpy()), t))) / u[t]
        x_t = peer.step(to_torch(velocity), peer.timesteps[i], x_t).prev_sample
        found.append(np.asarray(state.x_t, np.float64))
        expected.append(x_t.numpy().astype(np.float64))
    judge(f"Euler of flow matching, shift {shift}", difference(found, expected), 5e-6)
