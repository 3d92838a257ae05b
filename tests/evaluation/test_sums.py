"""Sums over a stream: the same as over all features at once, whatever the parts and their order."""

import dataclasses

import jax
import numpy as np
import pytest
from five_numbers import NETWORK, features_of

from ddpm_jax import parallel
from ddpm_jax.data import Arrays
from ddpm_jax.evaluation import (
    EvaluationError,
    SourceSamples,
    load_sums,
    merge_sums,
    moments_of,
    save_sums,
    sums_of,
    sums_of_features,
)
from ddpm_jax.evaluation import sums as sums_module

MESH = parallel.make_mesh()


def noise(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 1), dtype=np.uint8)


def samples_of(images):
    return SourceSamples(Arrays(images), 256, "noise", "none")


def assert_same(one, other, rel=1e-12):
    """The same sums up to rounding, and the same choice of rows to the bit."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rel, atol=rel * float(np.max(np.abs(b), initial=0.0)))
    np.testing.assert_array_equal(one.chosen.numbers, other.chosen.numbers)


@pytest.fixture(scope="module")
def features():
    """Of 2,000 images, on the host."""
    return jax.tree.map(np.asarray, features_of(noise(2000)))


def part(features, numbers, keep=100):
    some = jax.tree.map(lambda rows: rows[numbers], features)
    return sums_of_features(some, numbers, total=2000, keep=keep)


def test_a_stream_has_the_sums_of_all_its_features(monkeypatch, features):
    monkeypatch.setattr(sums_module, "_CHUNK", 300)
    streamed = sums_of(NETWORK, samples_of(noise(2000)), MESH, 64, keep=100)
    assert_same(streamed, part(features, np.arange(2000)), rel=1e-5)
    assert streamed.num == 2000
    for moments, rows in (
        (streamed.moments, features.pooled),
        (streamed.spatial, features.spatial),
    ):
        expected = moments_of(rows).scatter
        np.testing.assert_allclose(moments.scatter, expected, atol=1e-5 * expected.max())


@pytest.mark.parametrize("parts", [2, 4])
def test_the_sums_of_several_processes_merge_to_those_of_one(features, parts):
    whole = part(features, np.arange(2000))
    blocks = np.arange(2000).reshape(-1, 100)  # block i belongs to process i mod parts
    shares = [part(features, blocks[index::parts].ravel()) for index in range(parts)]
    assert_same(whole, shares[0] if parts == 1 else merge_in_order(shares))
    assert_same(whole, merge_in_order(shares[::-1]))


def merge_in_order(shares):
    first, *others = shares
    for other in others:
        first = merge_sums(first, other)
    return first


def test_blocks_of_a_stream_are_its_part(features):
    own = sums_of(NETWORK, samples_of(noise(2000)), MESH, 64, blocks=[(0, 100), (1900, 50)])
    numbers = np.r_[0:100, 1900:1950]
    some = jax.tree.map(lambda rows: rows[numbers], features)
    assert_same(own, sums_of_features(some, numbers, total=2000), rel=1e-5)


def test_a_process_without_blocks_adds_nothing(features):
    none = sums_of(NETWORK, samples_of(noise(2000)), MESH, 64, blocks=[], keep=100)
    assert (none.num, none.moments) == (0, None)
    some = part(features, np.arange(70))
    for merged in (merge_sums(none, some), merge_sums(some, none)):
        assert_same(merged, some, rel=0)


def test_groups_are_of_equal_size_and_as_random_as_a_sorted_folder_needs():
    group = sums_module._groups(np.arange(80_000))
    counts = np.bincount(group, minlength=8)
    np.testing.assert_array_equal(counts, 10_000)
    # Images 0, 8, 16, ... would be one group if it were the number mod 8: here it is 1/8 of each.
    # 10,000 draws: 5 standard deviations are 165.
    every = np.bincount(group[::8], minlength=8)
    assert np.max(np.abs(every - 1250)) < 165
    # The same whatever else is there.
    np.testing.assert_array_equal(sums_module._groups(np.arange(17, 23)), group[17:23])


def test_rows_are_a_uniform_choice(features):
    numbers = part(features, np.arange(2000), keep=500).chosen.numbers
    assert len(set(numbers.tolist())) == 500
    # Hypergeometric: 125 +- 8.4 of each quarter.
    quarters = np.bincount(numbers // 500, minlength=4)
    assert np.max(np.abs(quarters - 125)) < 40


def test_sums_come_back_from_their_file(features, tmp_path):
    path, sums = tmp_path / "sums.npz", part(features, np.arange(130), keep=20)
    save_sums(path, sums, ["network", "samples"])
    back = load_sums(path, ["network", "samples"], total=2000, keep=20)
    for a, b in zip(jax.tree.leaves(sums), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(a, b)
    assert jax.tree.structure(sums) == jax.tree.structure(back)
    for about, total in [(["another", "samples"], 2000), (["network", "samples"], 1999)]:
        with pytest.raises(EvaluationError, match="of other images, another network"):
            load_sums(path, about, total=total, keep=20)
    content = bytearray(path.read_bytes())
    content[content.find(sums.chosen.rows.tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match="is not a file of these sums"):
        load_sums(path, ["network", "samples"], total=2000, keep=20)


def test_what_cannot_be_summed_is_a_sentence(features):
    broken = features.pooled.copy()
    broken[1234, 2] = np.nan
    with pytest.raises(EvaluationError, match="pooled features of image 1234 are not finite"):
        part(features._replace(pooled=broken), np.arange(1000, 2000))
    with pytest.raises(EvaluationError, match="keep is 100 in one of the sums and 99"):
        merge_sums(part(features, np.arange(5)), part(features, np.arange(5, 9), keep=99))

    @dataclasses.dataclass(frozen=True)
    class Fewer(SourceSamples):
        num: int = 50

    fewer = Fewer(Arrays(noise(40)), 256, "noise", "none")
    with pytest.raises((EvaluationError, IndexError)):
        sums_of(NETWORK, fewer, MESH, 8)
