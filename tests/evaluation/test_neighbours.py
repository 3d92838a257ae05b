"""Nearest rows by brute force, on ties and where products have no digits."""

import time

import numpy as np
import pytest
import scipy.spatial.distance

from ddpm_jax.evaluation import EvaluationError, nearest, neighbours


def brute_nearest(queries, pool, k):
    wide = queries.astype(np.float64), pool.astype(np.float64)
    distances = scipy.spatial.distance.cdist(*wide)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(distances, order, axis=1)


@pytest.mark.parametrize("blocks", [(1, 1), (7, 5), (1024, 4096)])
@pytest.mark.parametrize("k", [1, 4, 30])
def test_nearest_by_brute_force(monkeypatch, k, blocks):
    monkeypatch.setattr(neighbours, "QUERIES", blocks[0])
    monkeypatch.setattr(neighbours, "POOL", blocks[1])
    monkeypatch.setattr(neighbours, "_PAIRS", 40)
    generator = np.random.default_rng(k)
    # Pixels: whole distances, many of them equal; the first of equals comes first.
    pool = generator.integers(0, 3, (30, 6), dtype=np.uint8)
    queries = np.concatenate([pool[:5], generator.integers(0, 3, (10, 6), dtype=np.uint8)])
    indices, distances = nearest(queries, pool, k)
    expected = brute_nearest(queries, pool, k)
    np.testing.assert_array_equal(indices, expected[0])
    np.testing.assert_allclose(distances, expected[1], rtol=1e-15)


@pytest.mark.parametrize("mean", [0.0, 3e4])
def test_near_duplicates_keep_their_order(mean):
    # Rows some last places from the query, far from 0: their products have no digit of it.
    base = np.full((1, 50), mean + 1.0, np.float32)
    steps = np.random.default_rng(0).permutation(40)
    pool = np.repeat(base, 40, axis=0)
    pool[:, 7] += steps.astype(np.float32) * np.spacing(base[0, 7])
    told = nearest(base, pool, 40)
    np.testing.assert_array_equal(told.indices[0], np.argsort(steps))
    np.testing.assert_array_equal(told.distances[0], np.arange(40) * float(np.spacing(base[0, 7])))


def test_products_leave_few_pairs_to_be_looked_at(monkeypatch):
    monkeypatch.setattr(neighbours, "QUERIES", 50)
    monkeypatch.setattr(neighbours, "POOL", 60)
    counts = []
    squared = neighbours.squared_distances

    def counted(x, y, rows, columns):
        counts.append(len(rows))
        return squared(x, y, rows, columns)

    monkeypatch.setattr(neighbours, "squared_distances", counted)
    # Far from 0, in units of their spread.
    rows = (3e7 + 4.0 * np.random.default_rng(0).standard_normal((300, 9))).astype(np.float32)
    nearest(rows, rows, 2)
    assert sum(counts) <= 300 * 2 * 5  # of 300 x 300


def test_a_model_that_draws_one_image_takes_no_longer(monkeypatch):
    monkeypatch.setattr(neighbours, "QUERIES", 50)
    monkeypatch.setattr(neighbours, "POOL", 60)
    generator = np.random.default_rng(0)
    drawn = np.repeat(generator.standard_normal((2, 7)).astype(np.float32), [150, 30], axis=0)
    drawn = generator.permutation(drawn)
    told = nearest(drawn, drawn, 160)
    expected = brute_nearest(drawn, drawn, 160)
    np.testing.assert_array_equal(told.indices, expected[0])
    np.testing.assert_allclose(told.distances, expected[1], rtol=1e-14)
    evaluated = []
    monkeypatch.setattr(
        neighbours,
        "_squared_distances",
        lambda x, y, rows, columns: (evaluated.append(len(rows)), np.zeros(len(rows)))[1],
    )
    nearest(drawn[drawn[:, 0] == drawn[0, 0]], drawn, 10)
    assert max(evaluated) <= 4  # kinds of pairs


def test_nearest_training_images_take_no_time():
    generator = np.random.default_rng(0)
    pool = generator.integers(0, 256, (60_000, 784), dtype=np.uint8)
    rows = generator.choice(60_000, 64, replace=False)
    queries = pool[rows] ^ (generator.random((64, 784)) < 0.01).astype(np.uint8)
    start = time.perf_counter()
    told = nearest(queries, pool, 1)
    seconds = time.perf_counter() - start
    np.testing.assert_array_equal(told.indices[:, 0], rows)
    assert seconds < 20.0  # 1 s where nothing else runs


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: nearest(x, x[:2], 3), "k is 3; .* rows of pool, 2"),
        (lambda x: nearest(x, x, 0), "k is 0"),
        (lambda x: nearest(x / 0.0, x, 1), r"queries\[0, 0\] is inf"),
        (lambda x: nearest(x > 0, x, 1), "queries has dtype bool"),
    ],
)
def test_what_is_refused(without_annotation_checks, call, said):
    with pytest.raises(EvaluationError, match=said), np.errstate(divide="ignore"):
        call(np.ones((6, 3)))
