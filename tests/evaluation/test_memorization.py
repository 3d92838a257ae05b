"""The fraction of samples near training images: exact chances for equal laws, and coverage."""

import numpy as np
import pytest

from ddpm_jax.evaluation import EvaluationError, near_fraction, near_level


def test_a_perfect_model_has_the_level_on_average():
    generator = np.random.default_rng(0)
    for held_out, quantile, level in ((99, 0.05, 0.05), (49, 0.01, 0.02), (200, 0.01, 2 / 201)):
        assert near_level(held_out, quantile) == pytest.approx(level)
        found = [
            near_fraction(
                generator.gamma(3.0, size=40), generator.gamma(3.0, size=held_out), quantile
            )
            for _ in range(200)
        ]
        values = [estimate.value for estimate in found]
        error = np.std(values) / np.sqrt(200)
        assert abs(np.mean(values) - level) < 4 * error  # 6e-5 of being wrong by chance


def test_a_copy_is_near_and_so_is_a_sample_at_the_threshold():
    held_out = np.concatenate([np.zeros(20), np.arange(1.0, 180.0)])  # a tenth are copies
    samples = np.array([0.0, 0.0, 0.5, 30.0])
    assert near_fraction(samples, held_out, 0.05).value == 0.5
    assert near_fraction(np.array([1.0, 1.5]), np.arange(1.0, 100.0), 0.01).value == 0.5


@pytest.mark.parametrize("power", [0.4, 1.0])
@pytest.mark.parametrize(("samples", "held_out"), [(300, 300), (1000, 120)])
def test_an_interval_covers_the_fraction_below_the_true_quantile(power, samples, held_out):
    generator = np.random.default_rng(0)
    true = 0.05**power  # the chance that u^(1 / power) is below 0.05
    found = [
        near_fraction(generator.random(samples) ** (1 / power), generator.random(held_out), 0.05)
        for _ in range(150)
    ]
    covers = np.mean([estimate.low <= true <= estimate.high for estimate in found])
    assert covers >= 0.9  # 95 % of 150; below 0.9 by chance in 1 %
    assert all(0.0 <= e.low <= e.value <= e.high <= 1.0 for e in found)


def test_held_out_images_that_cannot_show_the_level_have_no_interval():
    found = near_fraction(np.arange(10.0), np.arange(5.0, 54.0))
    assert found.value == 0.6  # of those up to the smallest distance, 5
    assert (found.low, found.high) == (None, None)
    assert "49 held-out images for the level 0.01" in found.note


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda x: near_fraction(x, x, 1.0), "quantile is 1.0; it has to be between 0 and 1"),
        (lambda x: near_fraction(x, x[:0]), "number of held-out images is 0"),
        (lambda x: near_fraction(x[:0], x), "number of distances of_samples is 0"),
        (lambda x: near_fraction(-x, x), "of_samples has the distance -1.0"),
        (lambda x: near_fraction(x, x * np.nan), "of_held_out has the distance nan"),
    ],
)
def test_what_is_refused(call, sentence):
    with pytest.raises(EvaluationError, match=sentence):
        call(np.ones(8))
