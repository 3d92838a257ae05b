"""Intervals of means and proportions beside scipy's and by how often they cover."""

import numpy as np
import pytest
import scipy.stats

from ddpm_jax.evaluation import Estimate, EvaluationError, mean_of, proportion


@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 1), (1, 1), (0, 50), (3, 50), (25, 50), (50, 50)]
)
def test_a_proportion_has_the_interval_of_wilson(successes, trials):
    found = proportion(successes, trials, "of trials")
    theirs = scipy.stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert found[:3] == pytest.approx((successes / trials, *theirs), abs=1e-12)
    assert found.low <= found.value <= found.high
    assert found.note == "of trials"


@pytest.mark.parametrize("probability", [0.03, 0.2, 0.5])
def test_a_proportion_is_covered_as_often_as_it_should_be(probability):
    chances = scipy.stats.binom.pmf(np.arange(201), 200, probability)
    intervals = [proportion(successes, 200) for successes in range(201)]
    covers = [estimate.low <= probability <= estimate.high for estimate in intervals]
    assert 0.93 < chances @ np.array(covers) < 0.975


def test_a_mean_has_the_interval_of_student():
    values = [3.0, 3.5, 5.0, 2.0]
    error = scipy.stats.sem(values)
    theirs = scipy.stats.t.interval(0.95, 3, loc=np.mean(values), scale=error)
    assert mean_of(values)[:3] == pytest.approx((np.mean(values), *theirs), rel=1e-12)
    assert mean_of([2.5]) == Estimate(2.5, note="no interval: one value only")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: mean_of([]), "number of values is 0"),
        (lambda: mean_of([1.0, float("nan")]), "every value has to be finite"),
        (lambda: proportion(3, 2), "successes is 3; it has to be from 0 to 2"),
        (lambda: proportion(0, 0), "trials is 0"),
    ],
)
def test_what_is_refused(call, sentence):
    with pytest.raises(EvaluationError, match=sentence):
        call()
