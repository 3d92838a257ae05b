"""Nearest rows, precision and recall by brute force, on ties and where products have no digits."""

import time

import numpy as np
import pytest
import scipy.spatial.distance

from ddpm_jax.evaluation import nearest, neighbours, precision_recall


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


def brute_precision_recall(samples, reference, k):
    """From exact squared distances of whole numbers; the definition word by word."""

    def squared(x, y):
        return sum((int(a) - int(b)) ** 2 for a, b in zip(x, y, strict=True))

    def share(queries, centres):
        inside = 0
        for query in queries:
            for i, centre in enumerate(centres):
                others = [squared(centre, c) for j, c in enumerate(centres) if j != i]
                if squared(query, centre) <= sorted(others)[k - 1]:
                    inside += 1
                    break
        return inside / len(queries)

    return share(samples, reference), share(reference, samples)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_precision_and_recall_by_the_definition(monkeypatch, seed, k):
    monkeypatch.setattr(neighbours, "QUERIES", 7)
    monkeypatch.setattr(neighbours, "POOL", 9)
    generator = np.random.default_rng(seed)
    # Few values, so that many pairs are equal and many points on the surface of a ball.
    samples = generator.integers(0, 5, (25, 3))
    reference = generator.integers(1 + seed, 7, (32, 3))
    expected = brute_precision_recall(samples, reference, k)
    # Scaled and moved by powers of two: exact, and products of float32 have lost their digits.
    for scale, shift in ((1.0, 0.0), (2.0**-10, 2.0**12)):
        moved = [(part * scale + shift).astype(np.float32) for part in (samples, reference)]
        assert precision_recall(*moved, k) == expected


def test_balls_around_equal_features_and_their_surface():
    equal = np.ones((5, 2))
    # k = 3: the third neighbour of each is an equal one, so balls have no radius, but a centre.
    assert precision_recall(equal, equal) == (1.0, 1.0)
    assert precision_recall(equal + 1e-9, equal) == (0.0, 0.0)
    line = np.arange(6.0)[:, None]
    assert precision_recall(line + 2.0, line, k=1) == (5 / 6, 5 / 6)  # 6 is on the surface about 5
    # Two pairs so far apart that products say nothing about what is inside a pair's balls.
    pairs = np.array([[0.0], [1.0], [1e8], [1e8 + 8]], np.float32)
    assert precision_recall(np.array([[2.0], [2.5], [-1.5]], np.float32), pairs, k=1)[0] == 1 / 3
    same = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    assert precision_recall(same, same, k=1) == (1.0, 1.0)
