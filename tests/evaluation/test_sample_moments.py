"""Moments against exact fractions, in any order and partition; features over the mesh."""

import functools
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import parallel
from ddpm_jax.evaluation import EvaluationError, covariance, features_of, merge, moments_of


def exact_moments(features):
    """Mean and scatter as fractions, correctly rounded at the end."""
    rows = [[Fraction(float(value)) for value in row] for row in features]
    dim = len(rows[0])
    mean = [sum(row[i] for row in rows) / len(rows) for i in range(dim)]
    scatter = [
        [sum((row[i] - mean[i]) * (row[j] - mean[j]) for row in rows) for j in range(dim)]
        for i in range(dim)
    ]
    return np.array(mean, float), np.array(scatter, float)


def adversarial(seed=0, rows=60):
    """Means up to 2^24 times the spread, where float32 has one or two values; and a dead feature.

    Sums of squares have no digit of the variance left there, even in float64.
    """
    normal = np.random.default_rng(seed).standard_normal((rows, 5))
    scale = np.array([1.0, 1e-6, 3e2, 1e-20, 0.0])
    mean = np.array([1e7, 1.0, 1e9, 1e-14, 7.25])
    return (mean + scale * normal).astype(np.float32)


def assert_close(moments, features, tolerance):
    """The scatter relative to the deviations, the mean to itself."""
    mean, scatter = exact_moments(features)
    assert moments.rows == len(features)
    assert moments.mean.dtype == moments.scatter.dtype == np.float64
    np.testing.assert_allclose(moments.mean, mean, rtol=3e-16)
    size = np.sqrt(np.outer(np.diag(scatter), np.diag(scatter)))
    assert (np.abs(moments.scatter - scatter) <= tolerance * size).all()
    np.testing.assert_array_equal(moments.scatter, moments.scatter.T)


def test_moments_of_a_large_mean_and_a_tiny_variance():
    features = adversarial()
    assert np.unique(features[:, 1]).size < 60  # at the end of what float32 can tell apart
    assert_close(moments_of(features), features, 2e-15)
    # What the textbook's sums make of it, in float64 as well:
    wide = features.astype(np.float64)
    naive = np.mean(wide**2, axis=0) - np.mean(wide, axis=0) ** 2
    assert not np.allclose(naive, np.var(wide, axis=0), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("seed", range(5))
def test_any_partition_in_any_order_gives_the_same(seed):
    features = adversarial()
    generator = np.random.default_rng(seed)
    cuts = np.sort(generator.choice(np.arange(1, 60), 7, replace=False))
    parts = [moments_of(part) for part in np.split(generator.permutation(features), cuts)]
    # A mean in float64 is off by 2^-53 of itself, 1e-9 of a spread at the end of float32's digits.
    assert_close(functools.reduce(merge, parts), features, 4e-9)
    backwards = functools.reduce(lambda a, b: merge(b, a), parts)
    assert_close(backwards, features, 4e-9)
    in_a_tree = functools.reduce(merge, [merge(*parts[:2]), merge(*parts[2:4]), *parts[4:]])
    assert_close(in_a_tree, features, 4e-9)


def test_many_rows_are_numpys_covariance():
    features = np.random.default_rng(0).gamma(1.0, size=(9000, 7)).astype(np.float32)
    moments = moments_of(features)  # three blocks
    np.testing.assert_allclose(moments.mean, features.mean(axis=0, dtype=np.float64), rtol=1e-14)
    expected = np.cov(features.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(covariance(moments), expected, rtol=1e-12, atol=1e-14)
    one_by_one = functools.reduce(merge, (moments_of(features[i : i + 1]) for i in range(9000)))
    np.testing.assert_allclose(one_by_one.scatter, moments.scatter, rtol=1e-11, atol=1e-10)


def test_what_is_no_features(without_annotation_checks):
    features = np.ones((4, 3), np.float32)
    features[2, 1] = np.nan
    with pytest.raises(EvaluationError, match=r"features\[2, 1\] is nan"):
        moments_of(features)
    features[2, 1] = -np.inf
    with pytest.raises(EvaluationError, match=r"features\[2, 1\] is -inf"):
        moments_of(features)
    with pytest.raises(EvaluationError, match="dtype int64"):
        moments_of(np.ones((4, 3), np.int64))
    with pytest.raises(EvaluationError, match=r"shape \(0, 3\)"):
        moments_of(np.ones((0, 3)))
    with pytest.raises(EvaluationError, match="has to be an array on the host"):
        moments_of(jnp.ones((4, 3)))
    with pytest.raises(EvaluationError, match=r"3 dimensions and a\.mean 2"):
        merge(moments_of(np.ones((1, 2))), moments_of(np.ones((1, 3))))
    with pytest.raises(EvaluationError, match="moments has 1 row"):
        covariance(moments_of(np.ones((1, 2))))


class Told(NamedTuple):
    pooled: jax.Array
    logits: jax.Array


def network(params, images):
    flat = images.astype(jnp.float32).reshape(images.shape[0], -1)
    return Told(flat @ params["pooled"], flat @ params["logits"])


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (53, 2, 3, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def params():
    generator = np.random.default_rng(1)
    sizes = {"pooled": (6, 4), "logits": (6, 3)}
    return {
        name: jnp.asarray(generator.integers(-9, 9, size), jnp.float32)
        for name, size in sizes.items()
    }


@pytest.mark.thorough
@pytest.mark.parametrize("batch_size", [1, 13, 16, 53, 100])
@pytest.mark.parametrize("parts", [[53], [5, 30, 1, 17], [1] * 53])
def test_features_over_the_mesh_are_those_of_each_image(images, params, batch_size, parts):
    mesh = parallel.make_mesh(data=4, fsdp=2)
    arriving = np.split(images, np.cumsum(parts)[:-1])
    apply = jax.tree_util.Partial(network, params)
    told = list(features_of(apply, arriving, mesh, batch_size))
    size = -(-batch_size // 8) * 8
    assert [len(part.pooled) for part in told[:-1]] == [size] * (len(told) - 1)
    assert sum(len(part.pooled) for part in told) == 53  # what filled up the last batch is gone
    # Whole numbers, exact in float32.
    flat = images.reshape(53, -1).astype(np.int64)
    pooled = flat @ np.asarray(params["pooled"], np.int64)
    np.testing.assert_array_equal(np.concatenate([part.pooled for part in told]), pooled)
    logits = np.concatenate([part.logits for part in told])
    np.testing.assert_array_equal(logits, flat @ np.asarray(params["logits"], np.int64))
    # Streamed, as a run does it.
    streamed = functools.reduce(merge, (moments_of(part.pooled) for part in told))
    assert_close(streamed, pooled.astype(np.float32), 1e-14)


def test_features_are_split_over_all_devices_and_compiled_once(images, params):
    mesh = parallel.make_mesh()
    seen = []

    def apply(batch):
        seen.append(batch.shape)
        jax.debug.inspect_array_sharding(batch, callback=seen.append)
        return network(params, batch)

    apply = jax.tree_util.Partial(apply)
    told = list(features_of(apply, [images], mesh, 16))
    assert len(told) == 4
    assert len(list(features_of(apply, [images[:20]], mesh, 16))) == 2
    shape, sharding = seen  # traced once
    assert shape == (16, 2, 3, 1)
    assert sharding.shard_shape(shape) == (2, 2, 3, 1)


def test_what_cannot_be_run(images, params):
    mesh = parallel.make_mesh()
    with pytest.raises(EvaluationError, match="batch_size is 0"):
        features_of(functools.partial(network, params), [images], mesh, 0)
    with pytest.raises(EvaluationError, match=r"apply\(images\).pooled has shape \(4, 8\)"):
        list(features_of(lambda x: Told(jnp.zeros((4, 8)), jnp.zeros(8)), [images], mesh, 8))
    with pytest.raises(
        EvaluationError, match=r"shape \(3, 2, 1\) follow images of shape \(2, 3, 1\)"
    ):
        list(features_of(network, [images[:1], images[:1].swapaxes(1, 2)], mesh, 8))
    assert list(features_of(network, [], mesh, 8)) == []
