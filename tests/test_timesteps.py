"""How times fall: their range, their marginals, and what spreading them evenly buys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ddpm_jax import timesteps

DRAWS = {"uniform": timesteps.uniform, "stratified": timesteps.stratified}


@functools.cache
def draws(name, batch, num_steps, keys=20_000):
    """`[keys, batch]`: as many independent batches as there are keys."""
    draw = jax.vmap(lambda key: DRAWS[name](key, batch, num_steps))
    return np.asarray(jax.jit(draw)(jax.random.split(jax.random.key(0), keys)))


@pytest.mark.parametrize("name", DRAWS)
def test_times_are_int32_in_range(name):
    t = draws(name, 5, 7)
    assert t.dtype == np.int32
    assert (t.min(), t.max()) == (0, 6)


@pytest.mark.parametrize("name", DRAWS)
def test_each_position_is_uniform(name):
    # 20,000 batches; 5 chi-square tests of 7 cells, each at significance 1e-4, at a fixed seed.
    for position in draws(name, 5, 7).T:
        assert scipy.stats.chisquare(np.bincount(position, minlength=7)).pvalue > 1e-4


def test_uniform_times_are_independent():
    # 20,000 pairs; chi-square test of independence over 7 x 7 cells, at significance 1e-4.
    first, second = draws("uniform", 5, 7)[:, :2].T
    table = np.bincount(7 * first + second, minlength=49).reshape(7, 7)
    assert scipy.stats.chi2_contingency(table).pvalue > 1e-4


def test_the_stratified_lattice_is_exactly_uniform():
    # 5 and 7 have no common factor, so each of the 35 offsets gives a batch of its own.
    batches, counts = np.unique(draws("stratified", 5, 7), axis=0, return_counts=True)
    assert len(batches) == 35
    for position in batches.T:
        np.testing.assert_array_equal(np.bincount(position), np.full(7, 5))
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize(("batch", "num_steps"), [(8, 1000), (5, 7), (7, 7), (64, 1000)])
def test_stratified_times_are_evenly_spaced(batch, num_steps):
    t = np.sort(draws("stratified", batch, num_steps, keys=100))
    gaps = np.diff(t, axis=1, append=t[:, :1] + num_steps)
    spacing = num_steps / batch
    assert gaps.min() >= np.floor(spacing)
    assert gaps.max() <= np.ceil(spacing)


@pytest.mark.parametrize(("batch", "num_steps"), [(20, 5), (7, 3), (1000, 6)])
def test_a_batch_larger_than_the_chain_takes_every_time_evenly(batch, num_steps):
    for t in draws("stratified", batch, num_steps, keys=100):
        counts = np.bincount(t, minlength=num_steps)
        assert counts.min() >= batch // num_steps
        assert counts.max() <= -(-batch // num_steps)


def test_stratified_estimates_of_a_sum_vary_less():
    # 20,000 batches of 16; the sum over t of (t / T)^2 is known. Means within 5 standard errors.
    num_steps, batch = 100, 16
    exact = np.sum((np.arange(num_steps) / num_steps) ** 2)
    variance = {}
    for name in DRAWS:
        estimates = num_steps * np.mean((draws(name, batch, num_steps) / num_steps) ** 2, axis=1)
        variance[name] = estimates.var()
        standard_error = estimates.std() / np.sqrt(len(estimates))
        assert abs(estimates.mean() - exact) < 5 * standard_error
    assert variance["stratified"] < 0.1 * variance["uniform"]


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize(("batch", "num_steps"), [(0, 10), (-1, 10), (4, 0)])
def test_counts_start_at_one(name, batch, num_steps):
    wrong = f"batch is {batch}" if batch < 1 else f"num_steps is {num_steps}"
    with pytest.raises(ValueError, match=wrong):
        DRAWS[name](jax.random.key(0), batch, num_steps)


def test_the_lattice_has_a_limit():
    largest = timesteps.stratified(jax.random.key(1), 1024, 2**20 - 1)
    assert largest.min() >= 0
    assert largest.max() < 2**20 - 1
    assert len(jnp.unique(largest)) == 1024
    with pytest.raises(ValueError, match="batch \\* num_steps is 1073741824"):
        timesteps.stratified(jax.random.key(1), 1024, 2**20)
