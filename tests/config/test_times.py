"""`config.LogNormal`: the loss that it trains with and without its weights, and its refusals."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from ddpm_jax import config, schedules, timesteps
from ddpm_jax.experiment import build, image_spec_of

CHAIN = schedules.cosine(20)


def weights_of(member, batch=4096):
    """The weight of each t, once all of them are drawn."""
    t, weight = jax.jit(lambda key: member.make(CHAIN).draw(key, batch, ()))(jax.random.key(0))
    known = dict(zip(t.tolist(), weight.tolist(), strict=True))
    assert sorted(known) == list(range(CHAIN.num_steps))
    return np.array([known[t] for t in range(CHAIN.num_steps)])


def test_reweighted_losses_have_the_mean_over_uniform_times():
    p = np.asarray(timesteps.lognormal(CHAIN, 0.0, 2.0), np.float64)
    losses = 1.0 / (1.0 + np.arange(20.0))
    weighted = weights_of(config.LogNormal(0.0, 2.0, reweighted=True))
    assert np.sum(p * weighted * losses) == pytest.approx(losses.mean(), rel=1e-5)
    plain = weights_of(config.LogNormal(0.0, 2.0))
    np.testing.assert_array_equal(plain, 1.0)
    assert abs(np.sum(p * losses) - losses.mean()) > 0.05


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (config.LogNormal(mean=99.0), "times: mean is 99 and std is 1.2: a law of times with no"),
        (
            config.LogNormal(0.0, 0.1, reweighted=True),
            "times: LogNormal with mean 0 and std 0.1 never draws t = 0, which no weight",
        ),
    ],
)
def test_a_law_that_does_not_fit_the_chain_is_refused_before_the_first_step(times, message):
    changed = dataclasses.replace(tiny.get_config(), times=times)
    experiment = build(changed, spec=image_spec_of(changed), devices=jax.devices()[:1])
    with pytest.raises(config.ConfigError, match=message):
        _ = experiment.abstract_state
