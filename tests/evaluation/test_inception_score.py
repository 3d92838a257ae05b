"""The Inception score by 50 digits, from all logits and from sums over parts."""

import functools

import mpmath as mp
import numpy as np
import pytest

from ddpm_jax.evaluation import (
    EvaluationError,
    inception_score,
    inception_score_of_sums,
    merge_score_sums,
    score_sums_of,
)


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
    result = inception_score(logits, splits=5)
    assert result.mean == pytest.approx(np.mean(expected), rel=1e-14)
    assert result.standard_deviation == pytest.approx(np.std(expected), rel=1e-12)
    assert inception_score(logits, splits=1).mean == pytest.approx(fifty_digit_score(logits))


def test_inception_score_of_a_mixture():
    # Every image the same: 1. Each class as often, and sure of: the number of classes.
    assert inception_score(np.ones((30, 7))).mean == pytest.approx(1.0, rel=1e-14)
    assert inception_score(np.tile(1e3 * np.eye(7), (10, 1))).mean == pytest.approx(7.0, rel=1e-14)


def test_sums_over_parts_have_the_score_of_all_logits():
    logits = (9.0 * np.random.default_rng(0).standard_normal((60, 7))).astype(np.float32)
    splits = []
    for rows in np.split(logits, 5):
        parts = [score_sums_of(part) for part in np.split(rows, [1, 4, 9])]
        splits.append(functools.reduce(merge_score_sums, parts))
    found, expected = inception_score_of_sums(splits), inception_score(logits, 5)
    assert found.value == pytest.approx(expected.mean, rel=1e-13)
    half = 2.776445 * expected.standard_deviation / np.sqrt(4)  # Student's t, 4 degrees of freedom
    assert found.high - found.low == pytest.approx(2 * half, rel=1e-6)


@pytest.mark.parametrize(("samples", "splits"), [(9, 1), (12, 7)])
def test_splits_that_do_not_vary_have_no_interval(samples, splits):
    logits = np.random.default_rng(0).standard_normal((samples, 3))
    sums = [score_sums_of(part) for part in np.array_split(logits, splits)]
    found = inception_score_of_sums(sums)
    assert found.value == pytest.approx(np.mean([inception_score_of_sums([s]).value for s in sums]))
    assert found.low is None
    assert "no interval" in found.note


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: inception_score(x), "splits is 10; logits has 6 rows"),
        (lambda x: inception_score(x, 0), "splits is 0"),
        (lambda x: inception_score(x * np.nan, 1), r"logits\[0, 0\] is nan"),
        (lambda x: inception_score_of_sums([]), "number of splits is 0"),
        (
            lambda x: merge_score_sums(score_sums_of(x), score_sums_of(x[:, :2])),
            r"b\.probabilities has 2 dimensions",
        ),
    ],
)
def test_what_is_refused(without_annotation_checks, call, said):
    with pytest.raises(EvaluationError, match=said):
        call(np.ones((6, 3)))
