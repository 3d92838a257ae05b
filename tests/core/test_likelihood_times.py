"""The ELBO's terms at chosen times, and times that are spread over the chain."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import schedules
from ddpm_jax.likelihood import bits_at_times, bits_per_dim, spread_times
from ddpm_jax.likelihood.exact import terms_at
from ddpm_jax.losses import prior_term

NUM_STEPS, LEVELS, BATCH = 12, 17, 5
SCHEDULE = schedules.cosine(NUM_STEPS)
X0 = jnp.linspace(-1.0, 1.0, LEVELS)[
    jax.random.randint(jax.random.key(1), (BATCH, 3, 2), 0, LEVELS)
]
KEY = jax.random.key(7)
TO_BITS = 1.0 / (6 * np.log(2.0))
"""Nats of an image of 3x2 to bits per dimension."""


def predict(x_t, t):
    return 0.3 * x_t + 0.01 * t[:, None, None].astype(x_t.dtype)


@jax.jit
def bits(key, x0, times):
    return bits_at_times(SCHEDULE, predict, key, x0, times, predicts="v", levels=LEVELS)


def noise(keys, times):
    """The noise of each example at each of its times, as the docstring says."""
    of_one = jax.vmap(lambda key, t: jax.random.normal(jax.random.fold_in(key, t), (3, 2)))
    return jnp.stack([of_one(keys, t) for t in times])


@jax.jit
def terms_by_hand(keys, times):
    eps, static = noise(keys, times), {"predicts": "v", "levels": LEVELS, "variance": "small"}
    return terms_at(SCHEDULE, predict, X0, times, eps, **static)


# Times


@pytest.mark.parametrize(
    ("num_steps", "num_times"), [(2, 2), *itertools.product((12, 101, 1000), (2, 5, 8))]
)
def test_each_example_has_the_decoder_and_one_time_in_each_stretch(num_steps, num_times):
    times, lengths = spread_times(num_steps, num_times, 50, seed=3)
    assert times.shape == lengths.shape == (num_times, 50)
    assert times.dtype == lengths.dtype == np.int32
    assert (times[0] == 0).all()
    assert (lengths == lengths[:, :1]).all()
    assert lengths[0, 0] == 1
    assert lengths[:, 0].sum() == num_steps
    assert np.ptp(lengths[1:, 0]) <= 1
    first = np.cumsum(lengths[:, 0]) - lengths[:, 0]
    assert (times >= first[:, None]).all()
    assert (times < (first + lengths[:, 0])[:, None]).all()


@pytest.mark.parametrize("examples", [7, 50, 333])
def test_all_examples_have_every_time_about_as_often(examples):
    times, lengths = spread_times(101, 8, examples, seed=0)
    count = np.bincount(times.ravel(), minlength=101)
    for row, length in zip(times, lengths[:, 0], strict=True):
        own = np.bincount(row - row.min(), minlength=1) if length == 1 else count[np.unique(row)]
        assert own.max() <= -(-examples // length)
    expected = examples / np.repeat(lengths[:, 0], lengths[:, 0])
    assert (np.abs(count - expected) < 1.0).all()


def test_the_weighted_sum_is_unbiased():
    # Over 4,000 seeds: the mean is the whole sum, within 4.5 standard errors (p < 1e-5).
    values = np.sin(np.arange(30.0)) + np.exp(-np.arange(30.0) / 5)
    sums = []
    for seed in range(4000):
        times, lengths = spread_times(30, 6, 3, seed=seed)
        sums.append((lengths * values[times]).sum(axis=0))
    sums = np.array(sums)
    for of_example in sums.T:
        error = of_example.std(ddof=1) / np.sqrt(len(of_example))
        assert abs(of_example.mean() - values.sum()) < 4.5 * error
    assert sums.std() > 0.1  # and not the whole sum by itself


@pytest.mark.parametrize(
    "sizes", [np.ones(101), np.exp(-np.arange(101.0) / 10), np.eye(101)[50], np.zeros(101)]
)
@pytest.mark.parametrize("num_times", [2, 8, 101])
def test_stretches_have_about_equal_sums_of_the_sizes(sizes, num_times):
    times, lengths = spread_times(101, num_times, 500, seed=1, sizes=sizes)
    assert (times[0] == 0).all()
    assert lengths[0, 0] == 1
    assert lengths[:, 0].sum() == 101
    assert (lengths >= 1).all()
    first = np.cumsum(lengths[:, 0]) - lengths[:, 0]
    assert ((times >= first[:, None]) & (times < (first + lengths[:, 0])[:, None])).all()
    sums = np.add.reduceat(sizes, first)[1:]
    long = lengths[1:, 0] > 1  # a stretch of one time cannot be shorter
    assert (sums[long] <= sizes[1:].sum() / (num_times - 1) + 2.0 * sizes[1:].max()).all()


def test_equal_sizes_are_the_default():
    equal = spread_times(101, 8, 20, seed=2, sizes=np.ones(101))
    np.testing.assert_array_equal(spread_times(101, 8, 20, seed=2), equal)


@pytest.mark.parametrize("rounds", [0, 2])
def test_examples_after_whole_rounds_are_spread_over_the_whole_of_a_stretch(rounds):
    times, lengths = spread_times(1001, 3, 500 * rounds + 10, seed=0)
    for row, length in zip(times[1:], lengths[1:, 0], strict=True):
        left = np.sort(row[500 * rounds :])
        assert np.diff(left, append=left[0] + length).tolist() == [50] * 10


def test_the_weighted_sum_is_unbiased_whatever_the_sizes():
    # Over 4,000 seeds: the mean is the whole sum, within 4.5 standard errors (p < 1e-5).
    values = np.sin(np.arange(30.0)) + np.exp(-np.arange(30.0) / 5)
    sums = []
    for seed in range(4000):
        times, lengths = spread_times(30, 6, 3, seed=seed, sizes=np.exp(-np.arange(30.0) / 5))
        sums.append((lengths * values[times]).sum(axis=0))
    error = np.std(sums, axis=0, ddof=1) / np.sqrt(len(sums))
    assert (np.abs(np.mean(sums, axis=0) - values.sum()) < 4.5 * error).all()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (np.ones(11), r"sizes has shape \(11,\); it has to be \(12,\)"),
        (-np.ones(12), "sizes has values that are negative or not finite"),
        (np.full(12, np.inf), "sizes has values that are negative or not finite"),
    ],
)
def test_sizes_are_one_for_each_time(sizes, message):
    with pytest.raises(ValueError, match=message):
        spread_times(12, 3, 3, seed=0, sizes=sizes)


def test_with_all_times_it_is_the_whole_sum():
    times, lengths = spread_times(30, 30, 4, seed=9)
    np.testing.assert_array_equal(times, np.repeat(np.arange(30)[:, None], 4, axis=1))
    np.testing.assert_array_equal(lengths, 1)


def test_the_seed_decides():
    one, again, other = (spread_times(1000, 9, 20, seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


@pytest.mark.parametrize("num_times", [0, 1, 13])
def test_the_number_of_times_has_bounds(num_times):
    with pytest.raises(ValueError, match=rf"num_times is {num_times}; it has to be 2 to T = 12"):
        spread_times(12, num_times, 3, seed=0)


# Terms


def test_terms_are_those_of_the_chain_by_hand():
    times = jnp.array([[0, 3, 11, 1, 7], [5, 0, 2, 11, 11]], jnp.int32)
    keys = jax.random.split(KEY, BATCH)
    found = bits(KEY, X0, times)
    expected = terms_by_hand(keys, times)
    np.testing.assert_allclose(found.per_time, expected * TO_BITS, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(found.prior, prior_term(SCHEDULE, X0) * TO_BITS, rtol=1e-5)


@pytest.mark.thorough
def test_over_all_times_they_are_the_elbo_with_that_noise():
    times, lengths = spread_times(NUM_STEPS, NUM_STEPS, BATCH, seed=0)
    times = jnp.asarray(times)
    keys = jax.random.split(KEY, BATCH)
    found = bits(KEY, X0, times)
    of_all = terms_by_hand(keys, times)
    total = found.prior + (np.float32(lengths) * found.per_time).sum(axis=0)
    expected = (prior_term(SCHEDULE, X0) + of_all.sum(axis=0)) * TO_BITS
    np.testing.assert_allclose(total, expected, rtol=2e-5)


@pytest.mark.thorough
def test_their_mean_is_that_of_the_whole_elbo():
    # 2,000 copies of one image, each with its noise: the two estimates agree within 4.5 standard
    # errors (p < 1e-5), and few times are a noisier estimate of the same.
    copies = jnp.broadcast_to(X0[:1], (2000, 3, 2))
    whole = np.asarray(
        bits_per_dim(
            SCHEDULE, predict, jax.random.key(1), copies, predicts="v", levels=LEVELS
        ).total
    )
    times, lengths = spread_times(NUM_STEPS, 4, 2000, seed=5)
    found = bits(jax.random.key(2), copies, jnp.asarray(times))
    few = np.asarray(found.prior + (np.float32(lengths) * found.per_time).sum(axis=0))
    error = np.hypot(whole.std(), few.std()) / np.sqrt(2000)
    assert abs(whole.mean() - few.mean()) < 4.5 * error
    assert few.std() > whole.std()


@pytest.mark.thorough
def test_an_example_with_its_own_key_does_not_see_the_others():
    keys = jax.random.split(jax.random.key(3), BATCH)
    times = jnp.array([[0, 3, 11, 1, 7], [5, 0, 2, 11, 11]], jnp.int32)
    whole = bits(keys, X0, times)
    order = np.array([3, 0, 4, 2, 1])
    turned = bits(keys[order], X0[order], times[:, order])
    np.testing.assert_array_equal(turned.per_time, whole.per_time[:, order])
    np.testing.assert_array_equal(turned.prior, whole.prior[order])
    for i in range(BATCH):
        alone = bits(keys[i : i + 1], X0[i : i + 1], times[:, i : i + 1])
        # Another program, which may sum in another order.
        np.testing.assert_allclose(alone.per_time[:, 0], whole.per_time[:, i], rtol=1e-5)
    np.testing.assert_array_equal(
        bits(KEY, X0, times).per_time, bits(jax.random.split(KEY, BATCH), X0, times).per_time
    )


@pytest.mark.thorough
def test_a_time_has_its_noise_wherever_it_stands():
    times = jnp.array([[0] * BATCH, [4] * BATCH, [9] * BATCH], jnp.int32)
    one, other = bits(KEY, X0, times), bits(KEY, X0, times[::-1])
    np.testing.assert_array_equal(one.per_time, other.per_time[::-1])


@pytest.mark.usefixtures("without_annotation_checks")
@pytest.mark.parametrize(
    ("times", "error", "said"),
    [
        (jnp.zeros((2, BATCH)), TypeError, "times has dtype float32"),
        (jnp.zeros(BATCH, jnp.int32), ValueError, rf"times has shape \({BATCH},\)"),
        (jnp.zeros((2, 1), jnp.int32), ValueError, r"times has shape \(2, 1\)"),
        (jnp.zeros((0, BATCH), jnp.int32), ValueError, r"times has shape \(0, 5\)"),
        ([[0]], TypeError, "times is a list"),
    ],
)
def test_times_are_rows_of_integers(times, error, said):
    with pytest.raises(error, match=said):
        bits_at_times(SCHEDULE, predict, KEY, X0, times, predicts="v", levels=LEVELS)
