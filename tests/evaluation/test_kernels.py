"""Kernel distances and their intervals by brute force, and over many sets of samples."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from sklearn.metrics.pairwise import polynomial_kernel

from ddpm_jax.evaluation import (
    EvaluationError,
    cmmd,
    kernel_distance,
    kernel_distance_interval,
    kernel_distance_of_subsets,
    kernels,
)


def kernel_of(x, y):
    products = [Fraction(float(a)) * Fraction(float(b)) for a, b in zip(x, y, strict=True)]
    return (sum(products) / len(x) + 1) ** 3


def mean_kernel(xs, ys, pairs):
    values = [kernel_of(xs[i], ys[j]) for i, j in pairs]
    return sum(values) / len(values)


def exact_kernel_distance(a, b):
    return (
        mean_kernel(a, a, itertools.permutations(range(len(a)), 2))
        + mean_kernel(b, b, itertools.permutations(range(len(b)), 2))
        - 2 * mean_kernel(a, b, itertools.product(range(len(a)), range(len(b))))
    )


@pytest.mark.parametrize("block", [1, 3, 4, 2048])
def test_kernel_distance_by_a_double_loop(monkeypatch, block):
    monkeypatch.setattr(kernels, "_BLOCK", block)
    generator = np.random.default_rng(0)
    a = generator.standard_normal((9, 5)).astype(np.float32)
    b = 1.0 + generator.standard_normal((12, 5)).astype(np.float32)
    expected = float(exact_kernel_distance(a, b))
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-14)
    whole = kernel_distance_of_subsets(a[:9], b[:9], seed=0, subsets=3, subset_size=9)
    assert whole.mean == pytest.approx(float(exact_kernel_distance(a, b[:9])), rel=1e-13)
    assert whole.standard_error < 1e-13


def test_kernel_distance_by_the_kernel_of_sklearn():
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((2, 50, 12))
    b += 0.3
    within = [polynomial_kernel(part, degree=3, gamma=1 / 12, coef0=1.0) for part in (a, b)]
    between = polynomial_kernel(a, b, degree=3, gamma=1 / 12, coef0=1.0)
    expected = sum((k.sum() - np.trace(k)) / (50 * 49) for k in within) - 2 * between.mean()
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-11)


def test_kernel_distance_is_unbiased():
    # Two distributions over few points, all of them listed: the squared discrepancy is exact.
    a = np.array([[0.0, 1.0], [1.0, 1.0], [-1.0, 0.5]])
    b = np.array([[0.5, 0.5], [-1.0, 1.0]])
    every = (itertools.product(range(len(x)), range(len(y))) for x, y in ((a, a), (b, b), (a, b)))
    of_a, of_b, mixed = (
        float(mean_kernel(x, y, pairs))
        for (x, y), pairs in zip(((a, a), (b, b), (a, b)), every, strict=True)
    )
    expected = of_a + of_b - 2 * mixed
    generator = np.random.default_rng(0)
    drawn = [
        kernel_distance(a[generator.integers(0, 3, 4)], b[generator.integers(0, 2, 3)])
        for _ in range(4000)
    ]
    error = np.std(drawn) / np.sqrt(4000)
    assert abs(np.mean(drawn) - expected) < 4 * error  # 6e-5 of being wrong by chance
    assert min(drawn) < 0.0
    # With the diagonals, as the biased estimate has them, it would be this much more:
    own = [np.mean([float(kernel_of(x, x)) for x in points]) for points in (a, b)]
    assert (own[0] - of_a) / 4 + (own[1] - of_b) / 3 > 20 * error


def test_subsets_estimate_the_distance_of_all_rows():
    generator = np.random.default_rng(0)
    a = generator.standard_normal((200, 8)).astype(np.float32)
    b = 0.2 + generator.standard_normal((150, 8)).astype(np.float32)
    result = kernel_distance_of_subsets(a, b, seed=[1, 2], subsets=400, subset_size=20)
    assert abs(result.mean - kernel_distance(a, b)) < 4 * result.standard_error
    assert result.standard_error == pytest.approx(result.standard_deviation / math.sqrt(399))
    again = kernel_distance_of_subsets(a, b, seed=[1, 2], subsets=400, subset_size=20)
    other = kernel_distance_of_subsets(a, b, seed=[1, 3], subsets=400, subset_size=20)
    assert again == result != other


@pytest.mark.parametrize("block", [3, 2048])
def test_an_interval_is_the_jackknife_of_all_rows(monkeypatch, block):
    monkeypatch.setattr(kernels, "_BLOCK", block)
    generator = np.random.default_rng(0)
    a = generator.standard_normal((8, 3))
    b = 0.5 + generator.standard_normal((11, 3))
    variance = 0.0
    for x, without in (
        (a, lambda i: kernel_distance(np.delete(a, i, axis=0), b)),
        (b, lambda i: kernel_distance(a, np.delete(b, i, axis=0))),
    ):
        variance += (len(x) - 1) * np.var([without(i) for i in range(len(x))])
    value, low, high, _ = kernel_distance_interval(a, b)
    assert value == pytest.approx(kernel_distance(a, b), rel=1e-12)
    assert (high - low) / 2 == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_an_interval_covers_the_distance_of_the_distributions(shift):
    generator = np.random.default_rng(0)
    found = [
        kernel_distance_interval(
            generator.standard_normal((60, 4)), shift + generator.standard_normal((40, 4))
        )
        for _ in range(150)
    ]
    average = np.mean([estimate.value for estimate in found]) if shift else 0.0
    # 95 % of 150, below 0.9 by chance in 1 %; more where the distributions are equal.
    assert np.mean([estimate.low <= average <= estimate.high for estimate in found]) >= 0.9


@pytest.mark.parametrize("block", [4, 2048])
def test_cmmd_by_all_pairs(monkeypatch, block):
    monkeypatch.setattr(kernels, "_BLOCK", block)
    generator = np.random.default_rng(0)
    a = (3.0 * generator.standard_normal((9, 6))).astype(np.float32)
    b = (1.0 + generator.standard_normal((7, 6))).astype(np.float32)
    unit = [
        part.astype(float) / np.linalg.norm(part.astype(float), axis=1)[:, None] for part in (a, b)
    ]

    def mean(x, y):
        return np.mean([[np.exp(-np.sum((p - q) ** 2) / 200.0) for q in y] for p in x])

    expected = 1000 * (mean(unit[0], unit[0]) + mean(unit[1], unit[1]) - 2 * mean(*unit))
    found = cmmd(a, b)
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert found.low < found.value < found.high
    assert cmmd(a, 5.0 * a).value == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: kernel_distance(x, x[:1]), r"b has shape \(1, 3\).* n at least 2"),
        (lambda x: kernel_distance(x, x[:, :2]), "b has 2 dimensions and a 3"),
        (lambda x: kernel_distance_interval(x, x[:2]), "n at least 3"),
        (
            lambda x: cmmd(x * np.array([[1], [1], [1], [0], [1], [1.0]]), x),
            r"a\[3\] is 0; rows are scaled",
        ),
        (
            lambda x: kernel_distance_of_subsets(x, x, seed=0),
            "subset_size is 1000; .* rows of a, 6",
        ),
        (lambda x: kernel_distance_of_subsets(x, x, seed=None, subset_size=2), "seed is None"),
        (lambda x: kernel_distance_of_subsets(x, x, seed=0, subsets=1), "subsets is 1"),
    ],
)
def test_what_is_refused(without_annotation_checks, call, said):
    with pytest.raises(EvaluationError, match=said):
        call(np.ones((6, 3)))
