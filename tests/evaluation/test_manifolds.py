"""Precision, recall, density and coverage by their definitions; their intervals."""

import numpy as np
import pytest

from ddpm_jax.evaluation import (
    EvaluationError,
    density_coverage,
    neighbours,
    precision_recall,
)


def values(estimates):
    return tuple(estimate.value for estimate in estimates)


def squared(x, y):
    return sum((int(a) - int(b)) ** 2 for a, b in zip(x, y, strict=True))


def brute_precision_recall(samples, reference, k):
    """From exact squared distances of whole numbers; the definition word by word."""

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
        assert values(precision_recall(*moved, k)) == expected


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("seed", range(3))
def test_density_and_coverage_by_the_definition(monkeypatch, seed, k):
    monkeypatch.setattr(neighbours, "QUERIES", 7)
    monkeypatch.setattr(neighbours, "POOL", 9)
    generator = np.random.default_rng(seed)
    samples = generator.integers(0, 5, (25, 3))
    reference = generator.integers(1 + seed, 7, (32, 3))
    radii = [
        sorted(squared(centre, c) for j, c in enumerate(reference) if j != i)[k - 1]
        for i, centre in enumerate(reference)
    ]
    inside = np.array(
        [
            [squared(sample, centre) <= radius for sample in samples]
            for centre, radius in zip(reference, radii, strict=True)
        ]
    )
    for scale, shift in ((1.0, 0.0), (2.0**-10, 2.0**12)):
        moved = [(part * scale + shift).astype(np.float32) for part in (samples, reference)]
        density, coverage = density_coverage(*moved, k)
        assert density.value == pytest.approx(inside.sum() / (k * 25), rel=1e-14)
        assert coverage.value == inside.any(axis=1).mean()
        # The jackknife word by word.
        left_out = [np.delete(inside, j, axis=1).any(axis=1).mean() for j in range(25)]
        error = np.sqrt(24 * np.var(left_out))
        if error > 0.0:
            low, high = coverage.value - 1.959964 * error, coverage.value + 1.959964 * error
            assert coverage[1:3] == pytest.approx((max(low, 0.0), min(high, 1.0)), rel=1e-6)
        else:
            assert coverage.low is None


def test_one_distribution_has_density_one_and_the_coverage_of_its_paper():
    samples, reference = np.random.default_rng(0).standard_normal((2, 600, 4))
    density, coverage = density_coverage(samples, reference)
    assert density.value == pytest.approx(1.0, abs=0.1)  # 2.5 standard errors
    # Naeem et al. 2020, lemma 2, with m = n: 1 - prod over i < k of (n - 1 - i) / (2 n - 1 - i).
    expected = 1.0 - np.prod([(599 - i) / (1199 - i) for i in range(5)])
    assert coverage.value == pytest.approx(expected, abs=0.03)


def test_intervals_cover_the_choice_of_the_samples():
    generator = np.random.default_rng(0)
    reference = generator.standard_normal((80, 3))

    def numbers(n):
        samples = 1.3 * generator.standard_normal((n, 3))
        return precision_recall(samples, reference)[0], *density_coverage(samples, reference)

    found = [numbers(60) for _ in range(150)]
    for metric in zip(*found, strict=True):
        average = np.mean([estimate.value for estimate in metric])
        covers = np.mean([estimate.low <= average <= estimate.high for estimate in metric])
        assert 0.9 <= covers <= 1.0  # 95 % of 150; below 0.9 by chance in 1 %


def test_a_bootstrap_of_the_balls_would_shrink_them():
    generator = np.random.default_rng(0)
    reference, samples = generator.standard_normal((2, 300, 5))
    precision = precision_recall(samples, reference).precision
    again = [
        precision_recall(samples, reference[generator.integers(0, 300, 300)]).precision.value
        for _ in range(5)
    ]
    assert max(again) < precision.low


def test_balls_around_equal_features_and_their_surface():
    equal = np.ones((5, 2))
    # k = 3: the third neighbour of each is an equal one, so balls have no radius, but a centre.
    assert values(precision_recall(equal, equal)) == (1.0, 1.0)
    assert values(precision_recall(equal + 1e-9, equal)) == (0.0, 0.0)
    line = np.arange(6.0)[:, None]
    assert values(precision_recall(line + 2.0, line, k=1)) == (
        5 / 6,
        5 / 6,
    )  # 6 is on the surface about 5
    # Two pairs so far apart that products say nothing about what is inside a pair's balls.
    pairs = np.array([[0.0], [1.0], [1e8], [1e8 + 8]], np.float32)
    samples = np.array([[2.0], [2.5], [-1.5]], np.float32)
    assert precision_recall(samples, pairs, k=1).precision.value == 1 / 3
    same = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    assert values(precision_recall(same, same, k=1)) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: precision_recall(x, x[:3]), "k is 3; .* rows of reference, 3"),
        (lambda x: precision_recall(x[:3], x), "k is 3; .* rows of samples, 3"),
        (lambda x: precision_recall(x[:, :1], x), "samples has 1 dimensions and reference 3"),
        (lambda x: density_coverage(x, x[:5]), "k is 5; .* rows of reference, 5"),
        (lambda x: density_coverage(x[:, :1], x), "samples has 1 dimensions and reference 3"),
    ],
)
def test_what_is_refused(without_annotation_checks, call, said):
    with pytest.raises(EvaluationError, match=said):
        call(np.ones((6, 3)))
