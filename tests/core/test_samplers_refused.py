"""What samplers refuse, and by which name; and times that do not fall."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_samplers import SAMPLERS, denoiser

from ddpm_jax import samplers, schedules
from ddpm_jax.samplers import (
    ancestral,
    ddim,
    dpm_solver_pp,
    dpm_solver_pp_single,
    probability_flow,
    sample,
    unipc,
)


def test_arguments_that_cannot_be(without_annotation_checks):
    schedule, key = schedules.linear(10), jax.random.key(0)
    predict = denoiser("linear", 10)
    with pytest.raises(ValueError, match="variance is 'medium'"):
        ancestral(schedule, predict, variance="medium")
    for make in SAMPLERS.values():
        with pytest.raises(ValueError, match="predicts is 'noise'"):
            make(schedule, predict, predicts="noise")
    times, pair = jnp.array([3]), lambda x_t, t: (x_t, x_t)
    for variance, network in (("small", pair), ("large", pair), ("learned_range", predict)):
        with pytest.raises(TypeError, match=f"and variance is '{variance}'; a pair"):
            sample(ancestral(schedule, network, variance=variance), key, (1, 1), times)
    for make, orders in ((dpm_solver_pp, (0, 4)), (dpm_solver_pp_single, (1, 4)), (unipc, (0, 4))):
        for order in orders:
            with pytest.raises(ValueError, match=f"order is {order}"):
                make(schedule, predict, order=order)
    with pytest.raises(ValueError, match="variant is 'bh3'"):
        unipc(schedule, predict, variant="bh3")
    for order in (0, 5):
        with pytest.raises(ValueError, match=f"order is {order}"):
            probability_flow(schedule, predict, order=order)
    with pytest.raises(ValueError, match="iterations is 0"):
        samplers.ddim_inversion(schedule, predict, jnp.zeros((1, 1)), times, iterations=0)
    for eta in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="eta is"):
            ddim(schedule, predict, eta=eta)
    for times in (jnp.zeros(3), jnp.zeros((2, 2), jnp.int32), jnp.zeros(0, jnp.int32)):
        with pytest.raises(ValueError, match="times has shape"):
            sample(samplers.ddim(schedule, predict), key, (1, 1), times)
    with pytest.raises(TypeError, match="times is a list"):
        sample(samplers.ddim(schedule, predict), key, (1, 1), [3, 0])
    with pytest.raises(ValueError, match=r"eta has shape \(2,\)"):
        ddim(schedule, predict, eta=jnp.ones(2))


@pytest.mark.thorough
@pytest.mark.parametrize("name", SAMPLERS)
def test_what_predict_returned_is_told_by_its_name(name, without_annotation_checks):
    times = jnp.array([3, 1])
    for wrong, error, message in (
        (lambda x_t, t: x_t[:, :1], ValueError, r"predict returned the shape \(2, 1\)"),
        (lambda x_t, t: {"sample": x_t}, TypeError, "predict returned (a|one) dict"),
        (lambda x_t, t: jnp.ones((2, 3), jnp.int32), TypeError, "predict returned int32"),
    ):
        with pytest.raises(error, match=message):
            sample(SAMPLERS[name](schedules.linear(10), wrong), jax.random.key(0), (2, 3), times)


@pytest.mark.thorough
@pytest.mark.parametrize("name", SAMPLERS)
def test_times_that_do_not_fall_give_nan(name):
    schedule = schedules.linear(10)
    sampler = SAMPLERS[name](schedule, denoiser("linear", 10))
    draw = jax.jit(lambda times: sample(sampler, jax.random.key(0), (2, 3), times).x0)
    assert np.isfinite(draw(jnp.array([9, 5, 0]))).all()
    for times in ([0, 5, 9], [9, 5, 5]):
        assert np.isnan(draw(jnp.array(times))).all()
    up = samplers.ddim_inversion(schedule, denoiser("linear", 10), jnp.ones((2, 3)), jnp.arange(3))
    assert np.isnan(up).all()


def test_keys_are_one_or_one_for_each(without_annotation_checks):
    schedule, times = schedules.linear(20), jnp.array([3, 1])
    sampler = ddim(schedule, denoiser("linear", 20))
    for wrong, error, said in (
        (jax.random.split(jax.random.key(0), 3), ValueError, r"key has shape \(3,\)"),
        (jax.random.split(jax.random.key(0), (2, 1)), ValueError, r"key has shape \(2, 1\)"),
        (jax.random.PRNGKey(0), TypeError, "key has dtype uint32"),
    ):
        with pytest.raises(error, match=said):
            sample(sampler, wrong, (2, 3), times)
