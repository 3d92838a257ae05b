"""Statistics of features beside torch-fidelity's, and beside the formula of CMMD's code."""

import jax.numpy as jnp
import numpy as np
import pytest
from fid_peers import import_peer

from ddpm_jax.evaluation import (
    cmmd,
    inception_score,
    inception_score_of_sums,
    kernel_distance,
    kernel_distance_of_subsets,
    precision_recall,
    score_sums_of,
)

metric_isc = import_peer("torch_fidelity.metric_isc")
metric_kid = import_peer("torch_fidelity.metric_kid")
metric_prc = import_peer("torch_fidelity.metric_prc")
torch = metric_isc.torch


@pytest.fixture(scope="module")
def features():
    """float32 features of 300 samples and of 400 images."""
    generator = np.random.default_rng(0)
    mixing = generator.standard_normal((16, 16))
    samples = np.maximum(0.2 + 1.1 * generator.standard_normal((300, 16)) @ mixing, 0.0)
    images = np.maximum(generator.standard_normal((400, 16)) @ mixing, 0.0)
    return samples.astype(np.float32), images.astype(np.float32)


def test_precision_and_recall_of_torch_fidelity(features):
    theirs = metric_prc.calculate_precision_recall_full(*map(torch.from_numpy, features))
    ours = precision_recall(*features)
    # They are shares of 300 and 400; float32 distances may decide a few balls otherwise.
    assert [ours.precision.value, ours.recall.value] == pytest.approx(theirs, abs=0.005)


def test_inception_score_of_torch_fidelity():
    logits = 4.0 * np.random.default_rng(0).standard_normal((230, 12)).astype(np.float32)
    theirs = metric_isc.isc_features_to_metric(torch.from_numpy(logits), splits=5, shuffle=False)
    ours = inception_score(logits, splits=5)
    assert ours.mean == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert ours.standard_deviation == pytest.approx(theirs["inception_score_std"], rel=1e-10)
    sums = [score_sums_of(part) for part in np.split(logits, 5)]
    of_sums = inception_score_of_sums(sums).value
    assert of_sums == pytest.approx(theirs["inception_score_mean"], rel=1e-12)


def test_kernel_distance_of_torch_fidelity(features):
    wide = [part[:300].astype(np.float64) for part in features]
    names = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_coef0": 1}
    theirs = metric_kid.kernel_mmd(*wide, **names, kid_kernel_poly_gamma=None)
    assert kernel_distance(*wide) == pytest.approx(theirs, rel=1e-11)
    whole = kernel_distance_of_subsets(*wide, seed=0, subsets=2, subset_size=300)
    assert whole.mean == pytest.approx(theirs, rel=1e-11)


def test_cmmd_by_the_formula_of_its_code(features):
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in features]

    def mean_kernel(x, y):
        x, y = jnp.asarray(x), jnp.asarray(y)
        lengths = jnp.sum(x * x, axis=1)[:, None] + jnp.sum(y * y, axis=1)[None, :]
        return float(jnp.mean(jnp.exp((2.0 * x @ y.T - lengths) / 200.0)))

    within = mean_kernel(unit[0], unit[0]) + mean_kernel(unit[1], unit[1])
    # float32, as there: kernels near 1 have 6e-8 of rounding, and the scale is 1000.
    expected = 1000.0 * (within - 2.0 * mean_kernel(*unit))
    assert cmmd(*features).value == pytest.approx(expected, abs=3e-4)
