"""Kernel distance and Inception score by brute force and 50 digits; names; what is refused."""

import itertools
import math
from fractions import Fraction

import mpmath as mp
import numpy as np
import pytest

from ddpm_jax.evaluation import (
    EvaluationError,
    inception_score,
    kernel_distance,
    kernel_distance_of_subsets,
    metric_name,
    nearest,
    precision_recall,
)
from ddpm_jax.evaluation import metrics as metrics_module


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
    monkeypatch.setattr(metrics_module, "_BLOCK", block)
    generator = np.random.default_rng(0)
    a = generator.standard_normal((9, 5)).astype(np.float32)
    b = 1.0 + generator.standard_normal((12, 5)).astype(np.float32)
    expected = float(exact_kernel_distance(a, b))
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-14)
    whole = kernel_distance_of_subsets(a[:9], b[:9], seed=0, subsets=3, subset_size=9)
    assert whole.mean == pytest.approx(float(exact_kernel_distance(a, b[:9])), rel=1e-13)
    assert whole.standard_error < 1e-13


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
    told = kernel_distance_of_subsets(a, b, seed=[1, 2], subsets=400, subset_size=20)
    assert abs(told.mean - kernel_distance(a, b)) < 4 * told.standard_error
    assert told.standard_error == pytest.approx(told.standard_deviation / math.sqrt(399))
    again = kernel_distance_of_subsets(a, b, seed=[1, 2], subsets=400, subset_size=20)
    other = kernel_distance_of_subsets(a, b, seed=[1, 3], subsets=400, subset_size=20)
    assert again == told != other


def fifty_digit_score(logits):
    rows = [[mp.exp(mp.mpf(float(value))) for value in row] for row in logits]
    rows = [[value / mp.fsum(row) for value in row] for row in rows]
    mean = [mp.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
    total = mp.fsum(p * mp.log(p / q) for row in rows for p, q in zip(row, mean, strict=True))
    return float(mp.exp(total / len(rows)))


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])  # probabilities down to 10^-10000
def test_inception_score_of_fifty_digits(scale):
    logits = (scale * np.random.default_rng(0).standard_normal((23, 4))).astype(np.float32)
    parts = [logits[:4], logits[4:9], logits[9:13], logits[13:18], logits[18:]]
    expected = [fifty_digit_score(part) for part in parts]
    told = inception_score(logits, splits=5)
    assert told.mean == pytest.approx(np.mean(expected), rel=1e-14)
    assert told.standard_deviation == pytest.approx(np.std(expected), rel=1e-12)
    assert inception_score(logits, splits=1).mean == pytest.approx(fifty_digit_score(logits))


def test_inception_score_of_a_mixture():
    # Every image the same: 1. Each class as often, and sure of: the number of classes.
    assert inception_score(np.ones((30, 7))).mean == 1.0
    assert inception_score(np.tile(1e3 * np.eye(7), (10, 1))).mean == pytest.approx(7.0, rel=1e-14)


@pytest.mark.parametrize(
    ("metric", "samples", "others", "name"),
    [
        ("FID", 50_000, {}, "FID"),
        ("FID", 60_000, {}, "FID"),
        ("FID", 49_999, {}, "FID-49999"),
        ("FID", 10_000, {}, "FID-10k"),
        ("FID", 5_000, {}, "FID-5k"),
        ("FID", 1_234, {}, "FID-1234"),
        ("FID", 50_000, {"full_reference": False}, "FID-50k, part of the reference"),
        ("FID", 50_000, {"network": "digits classifier"}, "Frechet distance, digits classifier"),
        ("KID", 5_000, {}, "KID-5k"),
        ("IS", 50_000, {}, "IS"),
        ("precision", 50_000, {}, "precision, Inception-v3"),
        ("recall", 10_000, {}, "recall, Inception-v3, 10k samples"),
        ("recall", 1, {"network": "VGG-16"}, "recall, VGG-16, 1 sample"),
        ("IS", 360, {"network": "digits"}, "classifier score, digits, 360 samples"),
        (
            *("KID", 2_000, {"network": "digits", "full_reference": False}),
            "kernel distance, digits, 2k samples, part of the reference",
        ),
    ],
)
def test_a_number_has_the_name_it_may_have(metric, samples, others, name):
    assert metric_name(metric, samples=samples, **others) == name


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: kernel_distance(x, x[:1]), r"b has shape \(1, 3\).* n at least 2"),
        (lambda x: kernel_distance(x, x[:, :2]), "b has 2 dimensions and a 3"),
        (
            lambda x: kernel_distance_of_subsets(x, x, seed=0),
            "subset_size is 1000; .* rows of a, 6",
        ),
        (lambda x: kernel_distance_of_subsets(x, x, seed=None, subset_size=2), "seed is None"),
        (lambda x: kernel_distance_of_subsets(x, x, seed=0, subsets=1), "subsets is 1"),
        (lambda x: nearest(x, x[:2], 3), "k is 3; .* rows of pool, 2"),
        (lambda x: nearest(x, x, 0), "k is 0"),
        (lambda x: nearest(x / 0.0, x, 1), r"queries\[0, 0\] is inf"),
        (lambda x: nearest(x > 0, x, 1), "queries has dtype bool"),
        (lambda x: precision_recall(x, x[:3]), "k is 3; .* rows of reference, 3"),
        (lambda x: precision_recall(x[:3], x), "k is 3; .* rows of samples, 3"),
        (lambda x: precision_recall(x[:, :1], x), "samples has 1 dimensions and reference 3"),
        (lambda x: inception_score(x), "splits is 10; logits has 6 rows"),
        (lambda x: inception_score(x, 0), "splits is 0"),
        (lambda x: inception_score(x * np.nan, 1), r"logits\[0, 0\] is nan"),
        (lambda x: metric_name("FID", samples=0), "samples is 0"),
        (
            lambda x: metric_name("fid", samples=1),
            "metric is 'fid'; it has to be one of 'FID', 'KID'",
        ),
        (lambda x: metric_name("FID", samples=1, network=" "), "network is ' '"),
    ],
)
def test_what_is_refused(without_annotation_checks, call, said):
    with pytest.raises(EvaluationError, match=said), np.errstate(divide="ignore"):
        call(np.ones((6, 3)))
