"""How times fall: their range, their marginals, and what spreading and weighting them buys."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from exact import chain, float64
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ddpm_jax import processes, schedules, timesteps

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


@pytest.mark.thorough
@pytest.mark.parametrize(("batch", "num_steps"), [(20, 5), (7, 3), (1000, 6)])
def test_a_batch_larger_than_the_chain_takes_every_time_evenly(batch, num_steps):
    for t in draws("stratified", batch, num_steps, keys=100):
        counts = np.bincount(t, minlength=num_steps)
        assert counts.min() >= batch // num_steps
        assert counts.max() <= -(-batch // num_steps)


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_the_lattice_has_a_limit():
    largest = timesteps.stratified(jax.random.key(1), 1024, 2**20 - 1)
    assert largest.min() >= 0
    assert largest.max() < 2**20 - 1
    assert len(jnp.unique(largest)) == 1024
    with pytest.raises(ValueError, match="batch \\* num_steps is 1073741824"):
        timesteps.stratified(jax.random.key(1), 1024, 2**20)


UNEVEN = np.array([0.31, 0.02, 0.17, 0.005, 0.295, 0.05, 0.15])


@functools.cache
def weighted_draws(probabilities, batch, keys):
    """`[keys, batch]` of times and of weights."""
    p = jnp.asarray(probabilities, jnp.float32)
    draw = jax.vmap(lambda key: timesteps.importance(key, batch, p))
    return tuple(map(np.asarray, jax.jit(draw)(jax.random.split(jax.random.key(1), keys))))


def test_each_position_is_distributed_as_told():
    # 20,000 batches; 5 chi-square tests of 7 cells, each at significance 1e-4, at a fixed seed.
    t, _ = weighted_draws(tuple(UNEVEN), 5, 20_000)
    assert t.dtype == np.int32
    assert (t.min(), t.max()) == (0, 6)
    for position in t.T:
        counts = np.bincount(position, minlength=7)
        assert scipy.stats.chisquare(counts, UNEVEN * len(t)).pvalue > 1e-4


@pytest.mark.thorough
@pytest.mark.parametrize("shape", ["rising", "falling", "flat"])
def test_frequencies_of_a_long_chain(shape):
    # 400,000 independent draws of 4000 times, one chi-square test each, at significance 1e-4.
    # The cumulated float32 p of such a chain is off by more than its last p.
    num_steps = 4000
    p = {"rising": 3.0, "falling": -3.0, "flat": 0.0}[shape] * np.linspace(0.0, 1.0, num_steps)
    p = np.exp(p) / np.exp(p).sum()
    t, weight = (draw[:, 0] for draw in weighted_draws(tuple(p), 1, 400_000))
    assert t.min() >= 0
    assert t.max() < num_steps
    counts = np.bincount(t, minlength=num_steps)
    assert scipy.stats.chisquare(counts, p * len(t)).pvalue > 1e-4
    assert (np.abs(weight * p[t] * num_steps - 1.0) < 2e-6 + 2**-29 / p[t]).all()  # the lattice


def test_a_coarse_lattice_is_exactly_as_its_weights_say(monkeypatch):
    # So coarse that every offset is drawn: what each position gets is counted, not estimated.
    monkeypatch.setattr(timesteps, "_LATTICE", 40.0)
    points = np.maximum(np.floor(40 * UNEVEN), 1).astype(int)  # 12 1 6 1 11 2 6
    draw = jax.vmap(lambda key: timesteps.importance(key, 5, jnp.asarray(UNEVEN, jnp.float32)))
    t, weight = jax.jit(draw)(jax.random.split(jax.random.key(0), 2000))
    np.testing.assert_allclose(weight, points.sum() / (7 * points[t]), rtol=1e-6)
    offsets = jax.vmap(lambda key: jax.random.randint(key, (), 0, points.sum()))
    offsets = offsets(jax.random.split(jax.random.key(0), 2000))
    once, first = np.unique(np.asarray(offsets), return_index=True)
    assert len(once) == points.sum()
    for position in np.asarray(t)[first].T:
        np.testing.assert_array_equal(np.bincount(position), points)


@pytest.mark.thorough
@pytest.mark.parametrize("batch", [10, 1000, 100_003])
def test_a_batch_holds_each_time_as_often_as_its_share(batch):
    t, _ = weighted_draws(tuple(UNEVEN), batch, 100)
    counts = np.stack([np.bincount(row, minlength=7) for row in t])
    assert (np.abs(counts - batch * UNEVEN) < 1.0 + 1e-6 * batch).all()


@pytest.mark.thorough
@pytest.mark.parametrize("p", [UNEVEN, np.exp(-np.arange(30.0)), np.full(3, 1 / 3)], ids=len)
def test_weights_are_those_of_the_draw_and_not_of_the_rounded_argument(p):
    # Of the times that are not too rare to be drawn, each 1 / (T w) is a share of the lattice:
    # what they lack to 1 is the share of the others.
    t, weight = (draw.ravel() for draw in weighted_draws(tuple(p / p.sum()), 20_000, 50))
    share = {time: 1.0 / (len(p) * np.float64(w)) for time, w in zip(t, weight, strict=True)}
    missing = sum(p[i] for i in range(len(p)) if i not in share) / p.sum()
    assert abs(sum(share.values()) + missing - 1.0) < 1e-6
    assert all(abs(share[i] * p.sum() / p[i] - 1.0) < 1e-6 + 2**-28 / p[i] for i in share)


def test_rare_and_impossible_times():
    p = jnp.array([0.0, 1e-30, 1.0, 0.0, 0.0])
    t, weight = jax.jit(timesteps.importance, static_argnums=1)(jax.random.key(0), 4096, p)
    assert set(t.tolist()) <= {1, 2}
    assert np.isfinite(weight).all()
    for only in range(3):
        t, weight = timesteps.importance(jax.random.key(0), 5, jnp.eye(3)[only])
        assert set(t.tolist()) == {only}
        np.testing.assert_allclose(weight, 1 / 3, rtol=1e-7)


@pytest.mark.parametrize("factor", [2.0**-100, 0.5, 2.0**100])
def test_the_scale_of_probabilities_is_nothing(factor):
    p = jnp.asarray(UNEVEN, jnp.float32)
    for one, other in zip(
        timesteps.importance(jax.random.key(0), 9, p),
        timesteps.importance(jax.random.key(0), 9, p * factor),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("wrong", [[0.5, -0.1], [0.5, np.nan], [np.inf, 1.0], [0.0, 0.0]])
def test_what_is_no_distribution_gives_nan(wrong):
    t, weight = timesteps.importance(jax.random.key(0), 4, jnp.array(wrong))
    assert np.isnan(weight).all()
    assert set(t.tolist()) <= {0, 1}


def elbo_terms():
    """KL_t of Gaussian data, deviation 0.5, under a cosine chain of 1000: float64, t = 1 ..."""
    tables, deviation = chain("cosine", 1000), 0.5
    alpha_bar, noise = float64(tables.alpha_bar), float64(tables.noise_power)
    snr = alpha_bar / noise
    left = deviation**2 * noise / (alpha_bar * deviation**2 + noise)
    return (snr[:-1] - snr[1:]) / 2 * left[1:]


PIXELS = 64


def noisy_losses(rng, t):
    """KL_t as an example of independent pixels shows it: the squared error is a chi-square."""
    return elbo_terms()[t] * rng.chisquare(PIXELS, t.shape) / PIXELS


def learned_probabilities(rng, num_steps):
    """From a history of uniform draws, until every t has been seen."""
    history = timesteps.loss_history(num_steps)
    update = jax.jit(timesteps.update_history)
    while int(history.counts.min()) < 10:
        t = rng.integers(0, num_steps, 4096)
        losses = jnp.asarray(noisy_losses(rng, t), jnp.float32)
        history = update(history, jnp.asarray(t, jnp.int32), losses)
    return np.asarray(timesteps.probabilities(history), np.float64)


@pytest.mark.thorough
def test_all_are_unbiased_and_importance_varies_least():
    # 20,000 batches of 64; the mean of the KL terms is known. Means within 5 standard errors.
    # Variances against uniform's, each known to 2%: stratified 0.55, importance 0.00125 and, from
    # a history, 0.00128: what is left is the noise, 2 / PIXELS of the mean squared in each draw.
    rng = np.random.default_rng(0)
    terms = elbo_terms()
    num_steps, batch, keys = len(terms), 64, 20_000
    p = {
        "best": terms / terms.sum(),
        "history": learned_probabilities(rng, num_steps),
    }
    drawn = {name: (draws(name, batch, num_steps), 1.0) for name in DRAWS}
    drawn |= {name: weighted_draws(tuple(p[name]), batch, keys) for name in p}
    variance = {}
    for name, (t, weight) in drawn.items():
        estimates = np.mean(weight * noisy_losses(rng, t), axis=1, dtype=np.float64)
        variance[name] = estimates.var()
        standard_error = estimates.std() / np.sqrt(keys)
        assert abs(estimates.mean() - terms.mean()) < 5 * standard_error
    assert variance["stratified"] < 0.6 * variance["uniform"]
    assert variance["best"] < 0.0014 * variance["uniform"]
    noise = 2 / PIXELS * terms.mean() ** 2 / batch
    assert abs(variance["best"] / noise - 1) < 0.05
    # Independent draws from the history's p would have the variance of one of them / batch; spread
    # over the batch they have 0.88 of it.
    second_moment = np.sum(terms**2 / p["history"]) / num_steps**2 * (1 + 2 / PIXELS)
    independent = (second_moment - terms.mean() ** 2) / batch
    assert noise < variance["history"] < 0.92 * independent


def inserted_one_by_one(history, t, losses):
    kept, counts = (np.array(leaf) for leaf in history)
    for time, loss in zip(np.asarray(t), np.asarray(losses), strict=True):
        if np.isfinite(loss) and 0 <= time < len(counts):
            kept[time, counts[time] % kept.shape[1]] = loss
            counts[time] += 1
    return timesteps.LossHistory(kept, counts)


def batches(num_steps, batch, count, seed=0):
    """Random times, some far more often than others, and losses, some of no use."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        t = rng.binomial(num_steps - 1, rng.uniform(), batch)
        losses = rng.normal(size=batch).astype(np.float32)
        losses[rng.uniform(size=batch) < 0.1] = rng.choice([np.nan, np.inf, -np.inf])
        t[rng.uniform(size=batch) < 0.05] = rng.choice([-1, num_steps, 2**31 - 1, -(2**31)])
        yield jnp.asarray(t, jnp.int32), jnp.asarray(losses)


def assert_same(one, other):
    for first, second in zip(one, other, strict=True):
        np.testing.assert_array_equal(first, second)
        assert first.dtype == second.dtype


@pytest.mark.parametrize(
    ("num_steps", "length", "batch"), [(5, 3, 1), (5, 3, 64), (2, 1, 16), (100, 10, 256)]
)
def test_a_batch_enters_the_history_one_by_one(num_steps, length, batch):
    history = expected = timesteps.loss_history(num_steps, length)
    update = jax.jit(timesteps.update_history, donate_argnums=0)
    for t, losses in batches(num_steps, batch, 20):
        expected = inserted_one_by_one(expected, t, losses)
        history = update(history, t, losses)
        assert_same(history, expected)
    assert np.isfinite(history.losses).all()


@pytest.mark.thorough
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_eight_devices_keep_the_history_of_one(axis_type):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    alone = timesteps.loss_history(6, 3)
    spread = jax.device_put(alone, whole)
    update = jax.jit(timesteps.update_history)
    for t, losses in batches(6, 64, 5):
        alone = update(alone, t, losses)
        spread = update(spread, *jax.device_put((t, losses), split))
        assert_same(spread, alone)
    for leaf in spread:
        assert leaf.sharding.is_equivalent_to(whole, leaf.ndim)


@pytest.mark.thorough
def test_histories_of_an_ensemble():
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), timesteps.loss_history(6, 3))
    alone = [timesteps.loss_history(6, 3)] * 3
    update = jax.jit(timesteps.update_history)
    update_all = jax.jit(jax.vmap(timesteps.update_history))
    for i in range(4):
        t, losses = (jnp.stack(leaves) for leaves in zip(*batches(6, 32, 3, seed=i), strict=True))
        stacked = update_all(stacked, t, losses)
        alone = [update(*each) for each in zip(alone, t, losses, strict=True)]
    for i, history in enumerate(alone):
        assert_same([leaf[i] for leaf in stacked], history)
    p = jax.vmap(timesteps.probabilities)(stacked)
    np.testing.assert_allclose(p[1], timesteps.probabilities(alone[1]), rtol=1e-6)


@pytest.mark.thorough
def test_a_history_comes_back_from_a_file(tmp_path):
    first, second, third = batches(6, 32, 3)
    history = timesteps.update_history(timesteps.loss_history(6, 3), *first)
    leaves, structure = jax.tree.flatten(history)
    np.savez(tmp_path / "history.npz", *leaves)
    with np.load(tmp_path / "history.npz") as saved:
        restored = jax.tree.unflatten(structure, [jnp.asarray(saved[name]) for name in saved])
    for t, losses in (second, third):
        history = timesteps.update_history(history, t, losses)
        restored = timesteps.update_history(restored, t, losses)
    assert_same(restored, history)


def filled(losses):
    losses = jnp.asarray(losses, jnp.float32)
    return timesteps.LossHistory(losses, jnp.full(len(losses), losses.shape[1], jnp.int32))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_probabilities_follow_the_second_moment(scale):
    losses = np.random.default_rng(0).normal(size=(50, 10)) * np.logspace(-3, 3, 50)[:, None]
    losses = np.float32(losses * scale)
    size = np.sqrt(np.mean(np.square(losses.astype(np.float64)), axis=1))
    for share in (1e-3, 0.2, 1.0):
        p = np.asarray(timesteps.probabilities(filled(losses), uniform_share=share))
        np.testing.assert_allclose(p, (1 - share) * size / size.sum() + share / 50, rtol=3e-6)
        _, weight = timesteps.importance(jax.random.key(0), 4096, jnp.asarray(p))
        assert weight.max() <= (1 + 1e-5) / share


def test_probabilities_are_uniform_until_all_times_are_known():
    history = filled(np.arange(1.0, 7.0).reshape(3, 2))
    assert timesteps.probabilities(history)[0] < 0.2
    for counts in ([2, 1, 2], [0, 5, 5]):
        p = timesteps.probabilities(history._replace(counts=jnp.array(counts)))
        np.testing.assert_allclose(p, 1 / 3, rtol=1e-6)
    for history in (timesteps.loss_history(3), filled(np.zeros((3, 2)))):
        np.testing.assert_allclose(timesteps.probabilities(history), 1 / 3, rtol=1e-6)


def test_arguments_that_cannot_be(without_annotation_checks):
    key, history = jax.random.key(0), timesteps.loss_history(3, 2)
    t, losses = jnp.zeros(4, jnp.int32), jnp.zeros(4)
    for error, message, call in (
        (ValueError, "batch is 0", lambda: timesteps.importance(key, 0, losses)),
        (
            ValueError,
            "probabilities has shape \\(\\)",
            lambda: timesteps.importance(key, 1, losses[0]),
        ),
        (TypeError, "probabilities has dtype int32", lambda: timesteps.importance(key, 1, t)),
        (ValueError, "num_steps is 0", lambda: timesteps.loss_history(0)),
        (ValueError, "length is 0", lambda: timesteps.loss_history(3, 0)),
        (ValueError, "t has shape", lambda: timesteps.update_history(history, t[:2], losses)),
        (TypeError, "t has dtype", lambda: timesteps.update_history(history, losses, losses)),
        (TypeError, "losses has dtype", lambda: timesteps.update_history(history, t, t)),
        (ValueError, "losses has shape", lambda: timesteps.update_history(history, t, losses[0])),
    ):
        with pytest.raises(error, match=message):
            call()
    for share in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="uniform_share is"):
            timesteps.probabilities(history, uniform_share=share)
    for wrong in (
        history._replace(losses=losses),
        history._replace(counts=t),
        history._replace(losses=history.losses.astype(jnp.int32)),
    ):
        with pytest.raises((TypeError, ValueError), match=r"history\.(losses|counts) has"):
            timesteps.probabilities(wrong)


# Log-normal noise levels


def chain_of(log_sigma):
    return schedules.from_log_snr(-2.0 * np.asarray(log_sigma))


def test_noise_levels_of_edm_are_lognormal():
    # EDM's own grid, 80 down to 0.002 with rho 7, from little noise to much.
    grid = np.linspace(0.002 ** (1 / 7), 80.0 ** (1 / 7), 40) ** 7
    law = scipy.stats.norm(-1.2, 1.2)
    up_to = np.append(law.cdf(0.5 * (np.log(grid[1:]) + np.log(grid[:-1]))), 1.0)
    p = timesteps.lognormal(chain_of(np.log(grid)))
    assert p.dtype == jnp.float32
    np.testing.assert_allclose(p, np.diff(up_to, prepend=0.0), rtol=2e-6, atol=1e-12)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.6)])
def test_on_rectified_flow_it_is_the_logit_normal_of_u(mean, std):
    # The density of Esser et al. 2024, section 3.1, integrated over u; the last t has no signal.
    num_steps = 20
    u = (np.arange(num_steps) + 1) / num_steps
    with np.errstate(divide="ignore"):
        p = timesteps.lognormal(schedules.from_log_snr(2.0 * np.log((1 - u) / u)), mean, std)

    def density(u):
        logit = np.log(u / (1 - u))
        return np.exp(-0.5 * ((logit - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi) * u * (1 - u))

    odds = u[:-1] / (1 - u[:-1])
    middle = np.sqrt(odds[1:] * odds[:-1])  # of the logits
    last = odds[-1] ** 2 / middle[-1]  # as far above the last finite logit as the middle is below
    ends = np.concatenate([[0.0], middle / (1 + middle), [last / (1 + last)], [1.0]])
    expected = [
        scipy.integrate.quad(density, low, high)[0] for low, high in itertools.pairwise(ends)
    ]
    np.testing.assert_allclose(p, expected, rtol=1e-5)
    assert p[-1] > 0.0


def test_a_tail_keeps_its_digits():
    grid = np.linspace(-8.0, 8.0, 17)
    p = np.asarray(timesteps.lognormal(chain_of(grid), 0.0, 1.0))
    np.testing.assert_allclose(p, p[::-1], rtol=1e-6)
    np.testing.assert_allclose(p[-1], scipy.stats.norm.sf(7.5), rtol=1e-5)


def test_many_modes_count_by_their_mean_log_snr():
    log_snr = np.linspace(6.0, -6.0, 9)[:, None] + np.array([1.0, -1.0])
    p = timesteps.lognormal(processes.per_pixel(log_snr))
    np.testing.assert_allclose(p, timesteps.lognormal(chain_of(-0.5 * log_snr.mean(1))), rtol=1e-5)


def test_laws_that_cannot_be():
    chain = chain_of(np.linspace(-3.0, 4.0, 8))
    for mean, std, message in (
        (100.0, 1.0, "mean is 100 and std is 1: a law of times with no mass, .* from -3 to 4"),
        (float("nan"), 1.0, "mean is nan"),
        (0.0, 0.0, "std is 0.0; .* ln sigma of the chain runs from -3 to 4"),
        (0.0, -1.0, "std is -1.0"),
        (0.0, float("inf"), "std is inf"),
    ):
        with pytest.raises(ValueError, match=message):
            timesteps.lognormal(chain, mean, std)
    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(timesteps.lognormal)(chain)
