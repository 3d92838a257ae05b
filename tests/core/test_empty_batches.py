"""A batch without examples is a batch; what cannot be empty is refused in a sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import analytic, likelihood, losses, samplers, schedules
from ddpm_jax.samplers import guidance

pytestmark = pytest.mark.thorough

SCHEDULE = schedules.cosine(6)
TIMES = samplers.time_grid(SCHEDULE, 3)
KEY = jax.random.key(0)
NONE = jnp.zeros((0, 2, 3))
NEVER = jnp.zeros(0, jnp.int32)


def predict(x_t, t):
    return 0.1 * x_t


def pair(x_t, t):
    return x_t, x_t


GUIDED = guidance.classifier(
    SCHEDULE,
    guidance.classifier_free(predict, predict, scale=2.0, rescale=0.5),
    lambda x_t, t: jnp.sum(x_t, axis=(1, 2)),
)
SAMPLERS = {
    "ancestral": samplers.ancestral(SCHEDULE, pair, variance="learned_range"),
    "ddim": samplers.ddim(SCHEDULE, GUIDED, eta=0.5, threshold=samplers.dynamic_threshold()),
    "dpm_solver_pp": samplers.dpm_solver_pp(SCHEDULE, predict, stochastic=True),
    "dpm_solver_pp_single": samplers.dpm_solver_pp_single(SCHEDULE, predict, order=3),
    "unipc": samplers.unipc(SCHEDULE, predict),
    "midpoint": samplers.midpoint(SCHEDULE, predict),
    "heun": samplers.heun(SCHEDULE, predict),
    "stochastic_heun": samplers.stochastic_heun(SCHEDULE, predict, gamma=0.4),
    "probability_flow": samplers.probability_flow(SCHEDULE, predict),
    "inpaint": samplers.inpaint(
        samplers.ddim(SCHEDULE, predict), SCHEDULE, NONE, NONE > 0.0, resamplings=2
    ),
}


@pytest.mark.parametrize("keys", ["one", "each"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_of_nothing(name, keys):
    key = KEY if keys == "one" else jax.random.split(KEY, 3)[:0]
    assert samplers.sample(SAMPLERS[name], key, NONE.shape, TIMES).x0.shape == NONE.shape


def test_likelihoods_and_losses_of_nothing():
    options = {"predicts": "eps", "levels": 6}
    flow = likelihood.flow_bits_per_dim(SCHEDULE, predict, KEY, NONE, TIMES, **options)
    bits = likelihood.bits_per_dim(SCHEDULE, predict, KEY, NONE, chunk=2, **options)
    some = likelihood.estimate_bits_per_dim(SCHEDULE, predict, KEY, NONE, num_times=2, **options)
    times, lengths = likelihood.spread_times(6, 3, 0, seed=0)
    at = likelihood.bits_at_times(SCHEDULE, predict, KEY, NONE, jnp.asarray(times), **options)
    for found in (flow.bits_per_dim, bits.total, some.total, some.standard_error, at.prior):
        assert found.shape == (0,)
    assert flow.x_T.shape == NONE.shape
    assert bits.per_step.shape == (6, 0)
    assert at.per_time.shape == lengths.shape == (3, 0)
    assert samplers.ddim_inversion(SCHEDULE, predict, NONE, TIMES).shape == NONE.shape
    loss = losses.hybrid_loss(SCHEDULE, NONE, NONE, NONE, NONE, NEVER, NONE, **options)
    assert loss.shape == (0,)
    assert losses.elbo_loss(SCHEDULE, NONE, NONE, NONE, NEVER, **options).shape == (0,)
    data = analytic.gaussian([0.0] * 6, np.eye(6))
    assert analytic.predictor(data, SCHEDULE, predicts="eps")(NONE, NEVER).shape == NONE.shape


def test_examples_without_any_value_have_no_bits_per_dimension():
    x0, options = jnp.zeros((2, 0)), {"predicts": "eps", "levels": 6}
    calls = (
        lambda: likelihood.bits_per_dim(SCHEDULE, predict, KEY, x0, **options),
        lambda: likelihood.estimate_bits_per_dim(
            SCHEDULE, predict, KEY, x0, num_times=2, **options
        ),
        lambda: likelihood.flow_bits_per_dim(SCHEDULE, predict, KEY, x0, TIMES, **options),
        lambda: likelihood.bits_at_times(
            SCHEDULE, predict, KEY, x0, jnp.zeros((1, 2), jnp.int32), **options
        ),
        lambda: losses.elbo_loss(SCHEDULE, x0, x0, x0, jnp.zeros(2, jnp.int32), **options),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"x0 has shape \(2, 0\)"):
            call()
    with pytest.raises(ValueError, match=r"shape is \(\)"):
        samplers.sample(SAMPLERS["ddim"], KEY, (), TIMES)
