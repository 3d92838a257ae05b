"""Beside k-diffusion: its samplers and ours, step for step, with the same network and noise.

k-diffusion knows x = x0 + sigma eps alone. A chain with signal a is the same in y = x / a, where
sigma is b / a, so one path of k-diffusion, scaled, is that of every chain with these levels. It
runs here in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fid_peers import import_peer

from ddpm_jax import samplers, schedules

torch = pytest.importorskip("torch", reason="torch comes with the extra 'peers'")
peer = import_peer("k_diffusion.sampling", whole=False)
pytestmark = pytest.mark.optimized

SHAPE = (4, 5)
KEY = jax.random.key(7)
SIGMA = np.geomspace(0.02, 40.0, 200)
TIMES = [199, 180, 168, 139, 111, 90, 54, 23, 4]
GROWTH = 5  # levels of the chain by which churn raises sigma
GAMMA = (SIGMA[-1] / SIGMA[0]) ** (GROWTH / (len(SIGMA) - 1)) - 1.0
START = np.random.default_rng(0).normal(size=SHAPE) * SIGMA[-1]

CHAINS = {
    "variance exploding": np.ones_like(SIGMA),
    "variance preserving": 1.0 / np.sqrt(1.0 + SIGMA**2),
    "rectified flow": 1.0 / (1.0 + SIGMA),
}
"""Signal a of chains that have the same levels."""

churn = {"s_churn": GAMMA * len(TIMES), "s_tmin": 0.1, "s_tmax": 20.0, "s_noise": 1.02}
our_churn = {"gamma": GAMMA, "sigma_min": 0.1, "sigma_max": 20.0, "noise_scale": 1.02}
PAIRS = {
    "sample_euler": (samplers.ddim, {}, {}),
    "sample_euler_ancestral": (samplers.ddim, {"eta": 1.0}, {"eta": 1.0}),
    "sample_euler_ancestral, eta 0.6": (samplers.ddim, {"eta": 0.6}, {"eta": 0.6}),
    "sample_euler_ancestral, ancestral": (samplers.ancestral, {}, {"eta": 1.0}),
    "sample_heun": (samplers.heun, {}, {}),
    "sample_heun, churn": (samplers.stochastic_heun, our_churn, churn),
    "sample_dpmpp_2m": (samplers.dpm_solver_pp, {}, {}),
    "sample_dpmpp_2m_sde": (samplers.dpm_solver_pp, {"stochastic": True}, {"eta": 1.0}),
    "sample_lms": (samplers.probability_flow, {}, {"order": 4}),
}
"""Their names, and our samplers with our options and theirs."""


def denoise(y, sigma, xp):
    """D(y; sigma), no denoiser of anything, but one that depends on both."""
    return xp.tanh(y / xp.sqrt(1.0 + sigma**2) + 0.3 * xp.log(sigma))


def noises():
    steps = jax.random.split(KEY)[1]
    return [np.asarray(jax.random.normal(jax.random.fold_in(steps, t), SHAPE)) for t in TIMES]


def their_path(name, options, monkeypatch):
    """What each step but the last took for the data, and the images at the end."""
    drawn = iter([torch.tensor(noise).double() for noise in noises()])
    path = []

    def model(y, sigma):
        return denoise(y, sigma[:, None], torch)

    if "ancestral" in name or "sde" in name:
        options = options | {"noise_sampler": lambda sigma, following: next(drawn)}
    else:
        monkeypatch.setattr(torch, "randn_like", lambda x: next(drawn))
    end = getattr(peer, name.partition(",")[0])(
        model,
        torch.tensor(START),
        torch.tensor([*SIGMA[TIMES], 0.0], dtype=torch.float64),
        disable=True,
        callback=lambda state: path.append(state["denoised"].numpy()),
        **options,
    )
    return np.stack([*path[:-1], end.numpy()])


def our_path(chain, make, options):
    signal = CHAINS[chain]
    process = schedules.from_signal_noise(signal, signal * SIGMA)
    table, levels = jnp.asarray(signal, jnp.float32), jnp.asarray(SIGMA, jnp.float32)

    def predict(x_t, t):
        return denoise(x_t / table[t][:, None], levels[t][:, None], jnp)

    x0, path = samplers.sample(
        make(process, predict, predicts="x0", threshold=None, **options),
        KEY,
        SHAPE,
        jnp.array(TIMES),
        start=jnp.asarray(signal[-1] * START, jnp.float32),
        keep=lambda info: info.x0_hat,
    )
    return np.stack([*path[:-1], x0])


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("name", PAIRS)
def test_every_step_is_theirs(name, chain, monkeypatch):
    make, our_options, their_options = PAIRS[name]
    theirs = their_path(name, their_options, monkeypatch)
    ours = our_path(chain, make, our_options)
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"{name}, {chain}: largest relative difference {difference:.1e}")
    assert difference < 3e-6


@pytest.mark.parametrize("num_steps", [2, 8, 12])
def test_grids_are_nearest_to_their_levels(num_steps):
    schedule = schedules.from_log_snr(-2.0 * np.log(SIGMA))
    theirs = {
        "log_snr": peer.get_sigmas_exponential(num_steps, SIGMA[0], SIGMA[-1]),
        "karras": peer.get_sigmas_karras(num_steps, SIGMA[0], SIGMA[-1], rho=5.0),
    }
    for spacing, levels in theirs.items():
        wanted = np.log(levels.numpy()[:-1, None])  # the last one is the data
        nearest = np.abs(np.log(SIGMA) - wanted).argmin(axis=1)
        ours = samplers.time_grid(schedule, num_steps, spacing, rho=5.0)
        np.testing.assert_array_equal(ours, nearest)
