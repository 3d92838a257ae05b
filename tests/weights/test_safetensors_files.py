"""Files of safetensors, beside the library of that name; and what is no such file."""

import json
import struct

import disks
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from ddpm_jax.weights import LazyArray, WeightsError
from ddpm_jax.weights.safetensors_files import (
    open_safetensors,
    open_shards,
    write_safetensors,
)

RNG = np.random.default_rng(0)
ARRAYS = {
    "b": RNG.normal(size=(3, 4)).astype(np.float32),
    "a": np.float32(2.5).reshape(()),
    "none": np.zeros((0, 3), np.float32),
    "transposed": RNG.normal(size=(2, 3, 5)).astype(np.float32).T,
}


def lazy(arrays):
    return {
        name: LazyArray(array.shape, lambda array=array: array) for name, array in arrays.items()
    }


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def file_of(path, header, content):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)
    return path


def test_the_library_reads_what_is_written(tmp_path):
    path = tmp_path / "new" / "x.safetensors"
    write_safetensors(path, lazy(ARRAYS), {"format": "ours", "é": "ü\n"})
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"format": "ours", "é": "ü\n"}
        assert set(file.keys()) == set(ARRAYS)
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(file.get_tensor(name), array, strict=True)


def test_what_the_library_writes_is_read(tmp_path):
    kinds = (np.float64, np.float32, np.float16, np.int64, np.int32, np.uint8, np.bool_)
    arrays = {np.dtype(kind).name: RNG.integers(0, 2, (2, 3)).astype(kind) for kind in kinds}
    safetensors.numpy.save_file(arrays, tmp_path / "x", metadata={"a": "b"})
    opened, metadata = open_safetensors(tmp_path / "x")
    assert metadata == {"a": "b"}
    assert set(opened) == set(arrays)
    for name, array in arrays.items():
        assert opened[name].shape == array.shape
        np.testing.assert_array_equal(opened[name].read(), array, strict=True)


def test_bfloat16_is_read(tmp_path):
    values = jnp.asarray([1.5, -3.0, 1e30], jnp.bfloat16)
    content = np.asarray(values).tobytes()
    opened, metadata = open_safetensors(
        file_of(tmp_path / "x", {"a": entry("BF16", [3], 0, 6)}, content)
    )
    assert metadata == {}
    np.testing.assert_array_equal(np.float32(opened["a"].read()), np.float32(values))


GOOD = {"a": entry("F32", [2], 0, 8)}
DAMAGED = {
    "truncated": (GOOD, b"\0" * 7),
    "too long": (GOOD, b"\0" * 9),
    "overlapping": (GOOD | {"b": entry("F32", [2], 4, 12)}, b"\0" * 12),
    "out of range": (GOOD | {"b": entry("F32", [2], 8, 16)}, b"\0" * 8),
    "a hole": ({"a": entry("F32", [2], 4, 12)}, b"\0" * 12),
    "a size that overflows": ({"a": entry("F32", [2**62, 2**62], 0, 8)}, b"\0" * 8),
    "a negative size": ({"a": entry("F32", [-2], 0, 8)}, b"\0" * 8),
    "another length than the shape's": ({"a": entry("F32", [3], 0, 8)}, b"\0" * 8),
    "a type that is none": ({"a": entry("F31", [2], 0, 8)}, b"\0" * 8),
    "no JSON": (b"{a: 1}", b""),
    "a list": (b"[]", b""),
    "nested deeply": (b'{"a":' + b"[" * 100_000, b""),
    "the same name twice": (
        b'{"a":%s,"a":%s}' % ((json.dumps(GOOD["a"]).encode(),) * 2),
        b"\0" * 8,
    ),
    "a number as metadata": (GOOD | {"__metadata__": {"step": 1}}, b"\0" * 8),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_file_is_a_sentence(what, tmp_path):
    path = file_of(tmp_path / "x.safetensors", *DAMAGED[what])
    with pytest.raises(WeightsError, match=r"x\.safetensors .*damaged: ") as error:
        open_safetensors(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\3\4" + b"x" * 100, struct.pack("<Q", 10**18) + b"{}", b"\xff" * 8 + b"{}"],
    ids=["empty", "zip", "a header of 10^18 bytes", "a header of 2^64 bytes"],
)
def test_a_file_of_another_kind_is_a_sentence(content, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(WeightsError, match="is not a safetensors file"):
        open_safetensors(tmp_path / "x")


def test_what_is_no_file_is_a_sentence(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(WeightsError, match=f"{path} cannot be read"):
            open_safetensors(path)


def test_types_without_a_counterpart_are_named(tmp_path):
    path = file_of(tmp_path / "x", {"a": entry("F8_E4M3", [8], 0, 8)}, b"\0" * 8)
    with pytest.raises(WeightsError, match="'a' is of the type F8_E4M3"):
        open_safetensors(path)


def test_a_file_that_is_truncated_after_it_was_opened_is_a_sentence(tmp_path):
    path = file_of(tmp_path / "x", GOOD, b"\0" * 8)
    opened, _ = open_safetensors(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="has changed since"):
        opened["a"].read()
    path.unlink()
    with pytest.raises(WeightsError, match="cannot be read"):
        opened["a"].read()


# ---- several files


def shards(folder, weight_map):
    for name in ("one", "two"):
        write_safetensors(folder / name, lazy({name: ARRAYS["b"]}), {})
    index = folder / "x.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_the_files_of_an_index_are_one(tmp_path):
    opened = open_shards(shards(tmp_path, {"one": "one", "two": "two"}))
    assert list(opened) == ["one", "two"]
    np.testing.assert_array_equal(opened["two"].read(), ARRAYS["b"])


@pytest.mark.parametrize(
    ("weight_map", "sentence"),
    [
        ({"one": "../one"}, "has to be a file beside"),
        ({"one": "/etc/passwd"}, "has to be a file beside"),
        ({"one": ".."}, "has to be a file beside"),
        ({"one": "three"}, "three cannot be read: No such file"),
        ({"one": "one", "three": "two"}, "names 'three' in two, which does not hold it"),
        ({"one": "one", "three": "one"}, "names 'three' in one, which does not hold it"),
        ({"one": 1}, "has no weight_map"),
        ([], "has no weight_map"),
    ],
)
def test_an_index_that_does_not_fit_is_a_sentence(weight_map, sentence, tmp_path):
    with pytest.raises(WeightsError, match=sentence):
        open_shards(shards(tmp_path, weight_map))


def test_an_index_that_does_not_name_an_array_of_its_files_is_a_sentence(tmp_path):
    write_safetensors(tmp_path / "one", lazy(ARRAYS), {})
    index = tmp_path / "x.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(["a", "none", "transposed"], "one")}))
    with pytest.raises(WeightsError, match="does not name 'b' in one, which holds it"):
        open_shards(index)


# ---- written whole or not at all


def test_a_full_disk_leaves_what_was_there(disk):
    path = disk / "x.safetensors"
    write_safetensors(path, lazy(ARRAYS), {})
    before = path.read_bytes()
    disks.fill(disk, leaving=2**20)
    large = LazyArray((2**20,), lambda: np.zeros(2**20, np.float32))
    with pytest.raises(WeightsError, match="cannot be written: No space left"):
        write_safetensors(path, {"one": large}, {})
    assert path.read_bytes() == before
    assert len(list(disk.glob("x*"))) == 1


def test_an_array_of_another_shape_is_not_written(tmp_path):
    wrong = LazyArray((3,), lambda: np.zeros(4, np.float32))
    with pytest.raises(WeightsError, match=r"w is \(4,\) in its file, not \(3,\)"):
        write_safetensors(tmp_path / "x", {"w": wrong}, {})
    assert list(tmp_path.iterdir()) == []
