"""Reference statistics: made in one pass, saved to the bit, refused when altered or mixed."""

import os

import jax
import numpy as np
import pytest

from ddpm_jax.evaluation import (
    EvaluationError,
    FeatureNetwork,
    Provenance,
    Reference,
    check_network,
    check_same,
    gaussian_of,
    load_reference,
    merge,
    moments_of,
    save_reference,
)

PROVENANCE = Provenance(
    dataset="stripes",
    split="train",
    images=40,
    pixels_sha256="aa",
    preprocessing="17 levels to [-1, 1], \N{MULTIPLICATION SIGN} 2",
    network="digits classifier",
    network_sha256="bb",
)


@pytest.fixture
def reference():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((40, 5)).astype(np.float32)
    halves = moments_of(features[0::2]), moments_of(features[1::2])
    spatial = gaussian_of(moments_of(rng.standard_normal((40, 3))))
    return Reference(PROVENANCE, gaussian_of(merge(*halves)), spatial, features, halves)


def assert_same(a, b):
    assert a.provenance == b.provenance
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(one, other)
        assert getattr(one, "dtype", None) == getattr(other, "dtype", None)


@pytest.mark.parametrize("absent", [(), ("features",), ("spatial", "features", "halves")])
def test_a_file_gives_back_every_bit(tmp_path, reference, absent):
    reference = reference._replace(**dict.fromkeys(absent))
    path = tmp_path / "new" / "stripes.npz"
    save_reference(path, reference)
    assert_same(load_reference(path), reference)
    assert [path.name for path in path.parent.iterdir()] == ["stripes.npz"]


def test_equal_references_make_equal_bytes(tmp_path, reference, monkeypatch):
    save_reference(tmp_path / "a.npz", reference)
    monkeypatch.setattr("time.time", lambda: 2e9)
    in_fortran_order = reference._replace(features=np.asfortranarray(reference.features))
    save_reference(tmp_path / "b.npz", in_fortran_order)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_every_part_has_a_say_in_the_hash(tmp_path, reference):
    def altered(array):
        array = array.copy()
        array.flat[-1] = np.nextafter(array.flat[-1], np.inf, dtype=array.dtype)
        return array

    (even, odd), features, pooled = reference.halves, reference.features, reference.pooled
    others = [
        reference._replace(features=None),
        reference._replace(features=altered(features)),
        reference._replace(features=features.reshape(5, 40)),
        reference._replace(halves=(even._replace(rows=41), odd)),
        reference._replace(halves=(even, odd._replace(mean=altered(odd.mean)))),
        reference._replace(halves=(even._replace(scatter=altered(even.scatter)), odd)),
        reference._replace(halves=(odd, even)),
        reference._replace(halves=None),
        reference._replace(pooled=pooled._replace(mean=altered(pooled.mean))),
        reference._replace(pooled=pooled._replace(covariance=altered(pooled.covariance))),
        reference._replace(spatial=None),
        reference._replace(spatial=pooled),
        *(
            reference._replace(provenance=PROVENANCE._replace(**{field: 7}))
            for field in Provenance._fields
        ),
    ]
    digests = set()
    for number, other in enumerate([reference, *others]):
        path = tmp_path / f"{number}.npz"
        save_reference(path, other)
        with np.load(path) as stored:
            digests.add(stored["sha256"].item())
    assert len(digests) == len(others) + 1


@pytest.mark.thorough
def test_damage_is_found(tmp_path, reference):
    path = tmp_path / "stripes.npz"
    save_reference(path, reference)
    written = path.read_bytes()
    for length in range(0, len(written), 97):
        path.write_bytes(written[:length])
        with pytest.raises(EvaluationError, match=r"stripes\.npz is damaged"):
            load_reference(path)
    found = 0
    for position in range(0, len(written), 13):
        flipped = bytearray(written)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            read = load_reference(path)
        except EvaluationError as error:
            said = str(error)
            found += 1
        else:
            assert_same(read, reference)  # a date, or the like
            continue
        assert str(path) in said
        assert "\n" not in said
    assert found > 0.8 * len(range(0, len(written), 13))


def test_what_is_no_reference(tmp_path, reference):
    path = tmp_path / "stripes.npz"
    with pytest.raises(EvaluationError, match=r"stripes\.npz is missing"):
        load_reference(path)
    with pytest.raises(EvaluationError, match="cannot be read"):
        load_reference(tmp_path)
    np.savez(path, mu=np.zeros(3))
    with pytest.raises(EvaluationError, match="another version of ddpm_jax: its format is absent"):
        load_reference(path)
    np.savez(path, format=np.array(1), anything=np.zeros(3))
    with pytest.raises(EvaluationError, match="its format is 1, and this version reads 3"):
        load_reference(path)
    np.savez(path, format=np.array([object()]))  # a pickle
    with pytest.raises(EvaluationError, match="is damaged or not a file of statistics"):
        load_reference(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(EvaluationError, match="is damaged or not a file of statistics"):
        load_reference(path)
    with pytest.raises(EvaluationError, match=r"has to end in \.npz"):
        save_reference(tmp_path / "stripes", reference)


def test_one_number_altered_by_hand(tmp_path, reference):
    path = tmp_path / "stripes.npz"
    save_reference(path, reference)
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays["even_mean"][0] += 1.0
    np.savez(path, **arrays)
    with pytest.raises(EvaluationError, match="altered: its SHA-256 differs"):
        load_reference(path)


def test_a_save_that_is_cut_off_leaves_what_was_there(tmp_path, reference, monkeypatch):
    path = tmp_path / "stripes.npz"
    save_reference(path, reference)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_reference(path, reference._replace(features=None))
    assert_same(load_reference(path), reference)


@pytest.mark.parametrize("field", Provenance._fields)
def test_mixing_is_refused(field):
    changed = PROVENANCE._replace(**{field: "other"})
    said = f"{field} is {getattr(PROVENANCE, field)!r} in one of the statistics and 'other' in"
    with pytest.raises(EvaluationError) as caught:
        check_same(PROVENANCE, changed)
    assert said in str(caught.value)
    check_same(PROVENANCE, PROVENANCE)


def network_like(reference, **changes):
    network = FeatureNetwork(
        PROVENANCE.network, PROVENANCE.network_sha256, 5, 10, lambda images: images, 3
    )
    return network._replace(**changes)


def test_a_reference_is_compared_with_its_own_network_only(reference):
    def refused(*parts, **changes):
        with pytest.raises(EvaluationError) as caught:
            check_network(reference, network_like(reference, **changes))
        sentence = str(caught.value)
        assert all(part in sentence for part in ("stripes", *parts)), sentence

    check_network(reference, network_like(reference))
    check_network(reference, network_like(reference, spatial_dim=0))
    refused("'digits classifier'", "'Inception-v3'", name="Inception-v3")
    refused("with the identity bb", "identity cc", identity="cc")
    refused("5 pooled features", "'digits classifier' has 6", dim=6)
    refused("3 spatial features", "'digits classifier' has 2", spatial_dim=2)


def test_the_sentence_about_another_resize_names_the_option_that_fits(reference):
    resized = PROVENANCE._replace(network="Inception-v3, clean-fid's resize", network_sha256="")
    reference = reference._replace(provenance=resized)
    with pytest.raises(EvaluationError, match="--inception-resize clean-fid"):
        check_network(reference, network_like(reference, name="Inception-v3"))
    # Without an identity, the name alone has to fit.
    check_network(reference, network_like(reference, name=resized.network, identity="any"))
