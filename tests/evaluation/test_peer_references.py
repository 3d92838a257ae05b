"""Beside torch-fidelity, clean-fid and pytorch-fid: their files, and their Frechet distances."""

import warnings

import numpy as np
import pytest
from fid_peers import import_peer
from peers import torch

from ddpm_jax.evaluation import (
    Gaussian,
    foreign_references,
    frechet_distance_of_gaussians,
    read_foreign_reference,
)

pytestmark = pytest.mark.thorough

scipy_linalg = pytest.importorskip("scipy.linalg")
metric_fid = import_peer("torch_fidelity.metric_fid")


def features(rows, dim, seed):
    """Correlated and not negative, as a network's are."""
    mix = np.random.default_rng(7).normal(size=(dim, dim)) * np.geomspace(1.0, 0.05, dim)
    noise = np.random.default_rng(seed).normal(size=(rows, dim))
    return np.maximum(noise @ mix / np.sqrt(dim) + 0.1 * seed, 0.0).astype(np.float32)


def gaussian(rows):
    return Gaussian(np.mean(rows, axis=0, dtype=np.float64), np.cov(rows, rowvar=False))


# ---- Files that torch-fidelity writes

CACHE = "cifar10-train-inception-v3-compat"
ROWS = features(40, 24, 1)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Options of a cache of torch-fidelity in a folder; Inception has 24 features."""
    monkeypatch.setattr(foreign_references, "_DIMS", {"Inception-v3": 24})
    return {"cache": True, "cache_root": str(tmp_path), "verbose": False}


def test_cached_statistics_of_torch_fidelity(tmp_path, cache):
    stored = metric_fid.cache_lookup_one_recompute_on_miss(
        f"{CACHE}-stat-fid-2048",
        lambda: metric_fid.fid_features_to_statistics(torch.from_numpy(ROWS)),
        **cache,
    )
    read = read_foreign_reference(tmp_path / f"{CACHE}-stat-fid-2048.pt")
    np.testing.assert_array_equal(read.pooled.mean, stored["mu"])
    np.testing.assert_array_equal(read.pooled.covariance, stored["sigma"])
    assert read.provenance.network == "Inception-v3"


def test_cached_features_of_torch_fidelity(tmp_path, cache):
    look_up = import_peer("torch_fidelity.utils").cache_lookup_group_recompute_all_on_any_miss
    made = {"2048": torch.from_numpy(ROWS), "logits_unbiased": torch.from_numpy(ROWS[:, :5])}
    look_up(f"{CACHE}-features-", list(made), lambda: made, **cache)
    read = read_foreign_reference(tmp_path / f"{CACHE}-features-2048.pt")
    np.testing.assert_array_equal(read.features, ROWS)
    np.testing.assert_allclose(read.pooled.covariance, np.cov(ROWS, rowvar=False), rtol=1e-6)
    other = read_foreign_reference(tmp_path / f"{CACHE}-features-logits_unbiased.pt")
    assert other.provenance.network.endswith("layer logits_unbiased")


# ---- Frechet distances of the same statistics


def by_torch_fidelity(a, b):
    statistics = ({"mu": mean, "sigma": covariance} for mean, covariance in (a, b))
    return metric_fid.fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]


def by_clean_fid(a, b):
    return import_peer("cleanfid.fid").frechet_distance(*a, *b)


def by_pytorch_fid(a, b):
    return import_peer("pytorch_fid.fid_score").calculate_frechet_distance(*a, *b)


def by_the_formula_of_edm(a, b):
    """Real part of the trace of the root of the product, without an offset of the diagonals."""
    root = scipy_linalg.sqrtm(a.covariance @ b.covariance)
    squared = np.sum((a.mean - b.mean) ** 2)
    return np.real(squared + np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.trace(root))


PEERS = (by_torch_fidelity, by_clean_fid, by_pytorch_fid, by_the_formula_of_edm)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize(("rows", "within"), [(200, 1e-10), (12, 1e-5)])
def test_frechet_distance(peer, rows, within):
    """With fewer rows than the 24 features both covariances are singular, where theirs lose half
    of the digits: the root of a zero eigenvalue that was computed as 1e-16 is 1e-8."""
    a, b = (gaussian(features(rows, 24, seed)) for seed in (1, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs = peer(a, b)
    assert frechet_distance_of_gaussians(*a, *b) == pytest.approx(theirs, rel=within)
