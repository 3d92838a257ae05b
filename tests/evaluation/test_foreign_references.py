"""Statistics of other programs: recognized or chosen by name, checked, never mixed or run."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from torch_pickles import tensor, zip_file

from ddpm_jax.evaluation import (
    REFERENCE_KINDS,
    EvaluationError,
    FeatureNetwork,
    Provenance,
    Reference,
    foreign_references,
    read_foreign_reference,
    read_reference,
    reference_contents,
    save_reference,
)

INCEPTION, DINOV2 = "Inception-v3", "DINOv2 ViT-L/14, EDM2's resize"
PYTORCH_FID = "Inception-v3, pytorch-fid's resize"
CLEAN_FID = "Inception-v3, clean-fid's resize"
RNG = np.random.default_rng(0)


def statistics(dim):
    rows = RNG.normal(1.0, 2.0, (40, dim)).astype(np.float32)
    return np.mean(rows, axis=0), np.cov(rows, rowvar=False)


(MU, SIGMA), (MU_S, SIGMA_S), (MU_D, SIGMA_D) = map(statistics, (6, 4, 5))
FID = {"mu": MU, "sigma": SIGMA}
ADM = FID | {"mu_s": MU_S, "sigma_s": SIGMA_S}
EDM2 = {"num_images": 50, "fid": FID, "fd_dinov2": {"mu": MU_D, "sigma": SIGMA_D}}
ROWS = RNG.normal(size=(30, 6)).astype(np.float32)


@pytest.fixture(autouse=True)
def few_features(monkeypatch):
    """Networks of 6, 5 and 4 features in place of 2048, 1024 and 2023."""
    dims = dict.fromkeys(foreign_references._DIMS, 6)
    dims |= {DINOV2: 5, foreign_references._SPATIAL: 4}
    monkeypatch.setattr(foreign_references, "_DIMS", dims)


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def pickled(path, content, protocol):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def torch_file(path, content, storages=()):
    """As torch.save writes it: pickled by protocol 2."""
    if isinstance(content, dict):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(content, 2))
            archive.writestr("archive/byteorder", b"little")
        path.write_bytes(file.getvalue())
    else:
        path.write_bytes(zip_file(content, dict(storages)))
    return path


def check_equal(gaussian, mean, covariance):
    np.testing.assert_array_equal(gaussian.mean, mean)
    np.testing.assert_array_equal(gaussian.covariance, covariance)
    assert {gaussian.mean.dtype, gaussian.covariance.dtype} == {np.dtype(np.float64)}


def check_refused(read, *parts):
    with pytest.raises(EvaluationError) as caught:
        read()
    sentence = str(caught.value)
    assert "\n" not in sentence
    for part in parts:
        assert str(part) in sentence, sentence


# ---- What each program writes


def test_guided_diffusion_has_spatial_statistics_and_images(tmp_path):
    path = npz(tmp_path / "imagenet256.npz", arr_0=np.zeros((3, 2, 2, 3), np.uint8), **ADM)
    reference = read_foreign_reference(path)
    check_equal(reference.pooled, MU, SIGMA)
    check_equal(reference.spatial, MU_S, SIGMA_S)
    assert reference.features is reference.halves is None
    assert reference.provenance == Provenance(
        "imagenet256.npz", "", None, "", "that of guided-diffusion", INCEPTION, ""
    )
    assert reference_contents(path) == (True, True)


@pytest.mark.parametrize(
    ("kind", "network"),
    [("edm", INCEPTION), ("pytorch-fid", PYTORCH_FID), ("clean-fid", CLEAN_FID)],
)
def test_a_mean_and_a_covariance_need_a_kind(tmp_path, kind, network):
    path = npz(tmp_path / "cifar10.npz", **FID)
    check_refused(
        lambda: read_foreign_reference(path),
        *(path, "does not tell which program", "'edm'", "'pytorch-fid'", "--reference-kind"),
    )
    reference = read_foreign_reference(path, kind)
    check_equal(reference.pooled, MU, SIGMA)
    assert reference.provenance.network == network
    assert reference.spatial is None


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("cifar10_clean_train_32.npz", CLEAN_FID),
        ("my_faces_clean_custom_na.npz", CLEAN_FID),
        ("ffhq_legacy_pytorch_trainfull_256.npz", PYTORCH_FID),
        ("ffhq_legacy_tensorflow_trainfull_256.npz", INCEPTION),
    ],
)
def test_clean_fid_tells_its_mode_by_the_name_of_the_file(tmp_path, name, network):
    reference = read_foreign_reference(npz(tmp_path / name, **FID))
    check_equal(reference.pooled, MU, SIGMA)
    assert reference.provenance.network == network


def test_another_network_of_clean_fid_keeps_its_name(tmp_path):
    path = npz(tmp_path / "faces_clean_clip_vit_b_32_custom_na.npz", **FID)
    assert read_foreign_reference(path).provenance.network == "CLIP ViT-B/32, clean-fid's resize"


def check_rows(reference, rows):
    np.testing.assert_allclose(reference.pooled.mean, rows.mean(axis=0, dtype=float), rtol=1e-12)
    expected = np.cov(rows.astype(float), rowvar=False)
    np.testing.assert_allclose(reference.pooled.covariance, expected, rtol=1e-9)
    np.testing.assert_array_equal(reference.features, rows)
    assert [half.rows for half in reference.halves] == [15, 15]
    assert reference.provenance.images == 30


def test_features_of_clean_fid_give_statistics_rows_and_halves(tmp_path):
    path = npz(tmp_path / "cifar10_clean_train_32_kid.npz", feats=ROWS)
    check_rows(read_foreign_reference(path), ROWS)
    few = read_foreign_reference(path, keep_features=7)
    assert few.features.shape == (7, 6)
    assert few.provenance.images == 30


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_edm2_has_two_networks_in_one_pickle(tmp_path, protocol):
    path = pickled(tmp_path / "img512.pkl", EDM2, protocol)
    inception = read_foreign_reference(path, network=INCEPTION)
    check_equal(inception.pooled, MU, SIGMA)
    dinov2 = read_foreign_reference(path, "edm2", network=DINOV2)
    check_equal(dinov2.pooled, MU_D, SIGMA_D)
    for reference, network in ((inception, INCEPTION), (dinov2, DINOV2)):
        assert (reference.provenance.images, reference.provenance.network) == (50, network)
    names = f"{INCEPTION!r} and {DINOV2!r}"
    check_refused(lambda: read_foreign_reference(path), names, "network has to name one")
    parts = names, "compared by 'CLIP'", "--dinov2-resize edm2"
    check_refused(lambda: read_foreign_reference(path, network="CLIP"), *parts)


def test_statistics_of_torch_fidelity(tmp_path):
    path = torch_file(tmp_path / "cifar10-train-inception-v3-compat-stat-fid-2048.pt", FID)
    reference = read_foreign_reference(path)
    check_equal(reference.pooled, MU, SIGMA)
    assert reference.provenance.network == INCEPTION
    other = torch_file(tmp_path / "cifar10-train-dinov2-vit-l-14-stat-fid-dinov2.pt", FID)
    network = read_foreign_reference(other).provenance.network
    assert network == "dinov2-vit-l-14 of torch-fidelity, layer dinov2"
    for name in ("statistics.pt", "x-my-network-stat-fid-2048.pt"):
        path = torch_file(tmp_path / name, FID)
        check_refused(lambda path=path: read_foreign_reference(path), path, "tell the network")


def test_features_of_torch_fidelity(tmp_path):
    path = tmp_path / "cifar10-train-inception-v3-compat-features-2048.pt"
    torch_file(path, tensor("0", ROWS, legacy=False), {"0": ROWS})
    check_rows(read_foreign_reference(path), ROWS)


# ---- Whether a path is a reference, and of which network


def network_named(name, dim=6):
    return FeatureNetwork(name, "aa", dim, 0, lambda images: images)


def test_a_reference_is_read_for_a_network(tmp_path):
    edm2 = pickled(tmp_path / "img512.pkl", EDM2, 4)
    check_equal(read_reference(edm2, network_named(DINOV2, 5)).pooled, MU_D, SIGMA_D)
    adm = npz(tmp_path / "adm.npz", **ADM)
    check_refused(
        lambda: read_reference(adm, network_named(CLEAN_FID)),
        *("adm.npz", repr(INCEPTION), CLEAN_FID, "--inception-resize tensorflow"),
    )
    own = read_foreign_reference(adm)
    save_reference(tmp_path / "own.npz", own)
    check_equal(read_reference(tmp_path / "own.npz", network_named(INCEPTION)).pooled, MU, SIGMA)
    check_refused(
        lambda: read_reference(tmp_path / "own.npz", network_named(INCEPTION), "edm"),
        *("kind is 'edm'", "own.npz was written by ddpm_jax"),
    )


def test_contents_of_a_path(tmp_path):
    images = np.zeros((3, 2, 2, 3), np.uint8)
    assert reference_contents(tmp_path) == (False, True)
    assert reference_contents(npz(tmp_path / "a.npz", arr_0=images)) == (False, True)
    assert reference_contents(npz(tmp_path / "b.npz", images=images)) == (False, True)
    assert reference_contents(npz(tmp_path / "c.npz", **FID)) == (True, False)
    assert reference_contents(npz(tmp_path / "d.npz", x=MU)) == (False, False)
    assert reference_contents(pickled(tmp_path / "e.pkl", EDM2, 4)) == (True, False)
    np.save(tmp_path / "f.npy", images)
    assert reference_contents(tmp_path / "f.npy") == (False, True)
    pooled = read_foreign_reference(tmp_path / "c.npz", "edm")
    save_reference(tmp_path / "own.npz", Reference(*pooled))
    assert reference_contents(tmp_path / "own.npz") == (True, False)
    check_refused(lambda: reference_contents(tmp_path / "absent.npz"), "is missing")


# ---- What is refused


def test_a_kind_that_does_not_fit(tmp_path):
    adm = npz(tmp_path / "adm.npz", **ADM)
    for kind in ("edm", "pytorch-fid", "clean-fid", "edm2"):
        check_refused(
            lambda kind=kind: read_foreign_reference(adm, kind),
            *(f"kind is {kind!r}", "contents of a file of guided-diffusion"),
        )
    check_refused(
        lambda: read_foreign_reference(adm, "inception"), "kind is 'inception'", *REFERENCE_KINDS
    )


def test_what_is_no_statistics_file(tmp_path):
    check_refused(lambda: read_foreign_reference(tmp_path), tmp_path, "is a folder")
    check_refused(lambda: read_foreign_reference(tmp_path / "a.npz"), "a.npz is missing")
    path = npz(tmp_path / "b.npz", arr_0=np.zeros((3, 2, 2, 3), np.uint8))
    check_refused(lambda: read_foreign_reference(path), "arrays arr_0", "it holds images")
    (tmp_path / "c.npz").write_bytes(b"PK\x03\x04 and no more")
    check_refused(lambda: read_foreign_reference(tmp_path / "c.npz"), "c.npz is damaged or no .npz")
    (tmp_path / "d.csv").write_text("1,2")
    check_refused(lambda: read_foreign_reference(tmp_path / "d.csv"), "ending '.csv'", "no arrays")
    path = npz(tmp_path / "e.npz", mu=MU)
    check_refused(lambda: read_foreign_reference(path, "edm"), "arrays mu", *REFERENCE_KINDS)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"mu": MU[:5]}, "mu of {path} has shape (5,); for the 6 features of Inception-v3"),
        ({"sigma": SIGMA[:, :5]}, "sigma of {path} has shape (6, 5)"),
        ({"mu": np.full(6, np.nan)}, "mu of {path} has values that are not finite"),
        ({"sigma": SIGMA * np.inf}, "sigma of {path} has values that are not finite"),
        ({"mu": np.zeros(6, np.int64)}, "mu of {path} is of the type int64"),
        ({"sigma": np.triu(SIGMA)}, "sigma of {path} is not symmetric"),
        ({"sigma": -SIGMA}, "has the variance -"),
        ({"sigma": SIGMA + 9 * (1 - np.eye(6))}, "larger covariance than their variances allow"),
        ({"sigma": np.eye(6) - 0.4 * (1 - np.eye(6))}, "it has the eigenvalue -1"),
        ({"mu_s": MU}, "mu_s of {path} has shape (6,); for the 4 features of the spatial layer"),
    ],
)
def test_numbers_that_are_no_statistics_of_the_network(tmp_path, changes, part):
    path = npz(tmp_path / "adm.npz", **(ADM | changes))
    check_refused(lambda: read_foreign_reference(path), part.format(path=path))


@pytest.mark.parametrize(
    ("feats", "part"),
    [
        (ROWS[:, :5], "have 5 dimensions, and those of Inception-v3"),
        (ROWS[:3], "have shape (3, 6)"),
        (ROWS.astype(np.int64), "dtype int64"),
        (np.where(ROWS.max() == ROWS, np.inf, ROWS), "not finite"),
    ],
)
def test_features_that_are_none_of_the_network(tmp_path, feats, part):
    path = npz(tmp_path / "cifar10_clean_train_32_kid.npz", feats=feats)
    check_refused(lambda: read_foreign_reference(path), path, part)


def test_rounding_of_a_singular_covariance_is_removed(tmp_path):
    """Of 4 images, stored as float32: two eigenvalues are about -1e-8 in place of 0."""
    exact = np.cov(RNG.normal(size=(4, 6)), rowvar=False)
    rounded = exact.astype(np.float32)
    assert np.linalg.eigvalsh(rounded.astype(np.float64))[0] < -1e-9
    path = npz(tmp_path / "few.npz", mu=MU.astype(np.float32), sigma=rounded)
    read = read_foreign_reference(path, "edm").pooled.covariance
    np.testing.assert_allclose(read, exact, atol=1e-6)
    np.testing.assert_array_equal(read, read.T)
    assert np.linalg.eigvalsh(read)[0] > -1e-15


class Harmful:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_with_code_is_refused_and_not_executed(tmp_path, capsys, protocol):
    path = pickled(tmp_path / "img512.pkl", EDM2 | {"more": Harmful()}, protocol)
    sentence = "builtin", "print, which no file of arrays needs; it was not called"
    check_refused(lambda: read_foreign_reference(path, network=INCEPTION), path, *sentence)
    path = torch_file(tmp_path / "x-inception-v3-compat-stat-fid-2048.pt", FID | {"x": Harmful()})
    check_refused(lambda: read_foreign_reference(path), path, *sentence)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"num_images": 5},
        {"fid": {"mu": MU}},
        {"fid": {"mu": [1.0], "sigma": SIGMA}},
        {"fid": {"mu": MU.astype(object), "sigma": SIGMA}},
        {"fid": {"mu": MU.astype(">f8"), "sigma": SIGMA}},
    ],
)
def test_a_pickle_of_something_else(tmp_path, content):
    path = pickled(tmp_path / "img512.pkl", content, 4)
    check_refused(lambda: read_foreign_reference(path), path)


def test_a_file_that_ends_early(tmp_path):
    files = [
        npz(tmp_path / "a.npz", **ADM),
        pickled(tmp_path / "b.pkl", EDM2, 4),
        torch_file(tmp_path / "x-inception-v3-compat-stat-fid-2048.pt", FID),
    ]
    for path in files:
        written = path.read_bytes()
        for length in range(0, len(written), len(written) // 7):
            path.write_bytes(written[:length])
            check_refused(lambda path=path: read_foreign_reference(path, network=INCEPTION), path)
