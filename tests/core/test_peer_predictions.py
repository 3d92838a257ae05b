"""The velocity of flow matching and the network of EDM beside diffusers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import diffusers, to_torch, torch

from ddpm_jax import convert, q_sample, schedules
from ddpm_jax.losses import target
from ddpm_jax.predictions import edm

pytestmark = pytest.mark.thorough

T = 25
X0, EPS = jax.random.normal(jax.random.key(0), (2, 3, 4))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_is_the_output_that_diffusers_expects(shift):
    # Its Euler step to sigma = 0 along noise - sample ends at the sample.
    schedule, t = schedules.rectified_flow(T, shift), jnp.array([0, 12, 24])
    peer = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=T, shift=shift)
    times = peer.timesteps[T - 1 - np.asarray(t)]
    x_t = q_sample(schedule, X0, t, EPS)
    theirs = peer.scale_noise(to_torch(X0), times, to_torch(EPS))
    np.testing.assert_allclose(x_t, theirs, atol=1e-6)
    velocity = target(schedule, X0, t, EPS, predicts="flow")
    np.testing.assert_array_equal(velocity, EPS - X0)
    for i, time in enumerate(times):
        peer.timesteps, peer.sigmas = time[None], torch.tensor([schedule.noise(t)[i].item(), 0.0])
        peer._step_index = None
        end = peer.step(to_torch(velocity[i : i + 1]), time, to_torch(x_t[i : i + 1])).prev_sample
        at = t[i : i + 1]
        ours = convert(
            schedule, velocity[i : i + 1], x_t[i : i + 1], at, source="flow", target="x0"
        )
        np.testing.assert_allclose(ours, end, atol=1e-6)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edm_is_the_output_that_diffusers_expects(sigma_data):
    schedule, t = schedules.variance_exploding(T), jnp.array([3, 12, 24])
    peer = diffusers.EDMEulerScheduler(sigma_data=sigma_data)
    sigma, x_t = schedule.noise(t)[:, None], q_sample(schedule, X0, t, EPS)
    f = jnp.tanh(x_t)
    theirs = peer.precondition_outputs(*map(to_torch, (x_t, f, sigma)))
    ours = convert(schedule, f, x_t, t, source=edm(sigma_data), target="x0")
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    # What it should have been for these data.
    best = target(schedule, X0, t, EPS, predicts=edm(sigma_data))
    end = peer.precondition_outputs(*map(to_torch, (x_t, best, sigma)))
    np.testing.assert_allclose(end, X0, atol=2e-5)
