"""Files of PyTorch: both formats, each tensor when it is read, and everything else refused."""

import collections
import io
import os
import struct
import tracemalloc
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from imagery import ends_in_one_sentence
from torch_pickles import Call, Named, as_file, code, legacy_file, pickled, tensor, zip_file

from ddpm_jax.weights import WeightsError
from ddpm_jax.weights.torch_files import open_state_dict, read_state_dict

RNG = np.random.default_rng(0)
BOMB = 2**26
"""Bytes that some kilobytes unpack to: enough to be seen, and quick to be made."""

SMALL = {
    "a.weight": RNG.normal(size=(3, 4)).astype(np.float32),
    "a.count": np.array(7, np.int64),
    "a.empty": np.zeros((0, 2), np.float64),
}


@pytest.mark.parametrize("legacy", [True, False])
def test_a_state_dict(legacy, tmp_path):
    path = tmp_path / "small.pth"
    path.write_bytes(as_file(SMALL, legacy=legacy))
    read = read_state_dict(path)
    assert list(read) == list(SMALL)
    for name, array in SMALL.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize("write", [legacy_file, zip_file])
def test_windows_on_a_storage(write, tmp_path):
    path, storage = tmp_path / "small.pth", np.arange(12, dtype=np.float32)
    legacy = write is legacy_file
    value = {
        "transposed": tensor("0", storage, legacy=legacy, shape=(3, 4), strides=(1, 3)),
        "part": tensor("0", storage, legacy=legacy, shape=(2, 2), strides=(4, 1), offset=5),
    }
    path.write_bytes(write(value, {"0": storage}))
    read = read_state_dict(path)
    np.testing.assert_array_equal(read["transposed"], storage.reshape(4, 3).T)
    np.testing.assert_array_equal(read["part"], storage.reshape(3, 4)[1:, 1:3])


@pytest.mark.parametrize("legacy", [True, False])
def test_a_tensor_is_read_when_it_is_asked_for(legacy, tmp_path):
    path = tmp_path / "large.pth"
    state = {f"{number}": np.full((2048, 1024), number, np.float32) for number in range(3)}
    path.write_bytes(as_file(state, legacy=legacy))
    tracemalloc.start()
    try:
        lazy = open_state_dict(path)
        for name, array in lazy.items():
            assert array.shape == (2048, 1024)
            assert (array.read() == state[name]).all()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * state["0"].nbytes  # of one tensor, and of comparing it

    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert (lazy["0"].read() == 0).all()
    with pytest.raises(WeightsError, match="was truncated after it was opened"):
        lazy["2"].read()
    path.unlink()
    with pytest.raises(WeightsError, match="cannot be read: No such file"):
        lazy["0"].read()


@pytest.mark.parametrize("legacy", [True, False])
def test_half_precision(legacy, tmp_path):
    numbers = np.array([[1.0, -2.5], [3e-5, 0.0]], np.float32)
    half, brain = numbers.astype(np.float16), numbers.astype(jnp.bfloat16)
    path = tmp_path / "half.pt"
    path.write_bytes(as_file({"half": half, "brain": brain}, legacy=legacy))
    read = read_state_dict(path)
    assert (read["half"].dtype, read["brain"].dtype) == (np.float16, np.float32)
    np.testing.assert_array_equal(read["half"], half)
    np.testing.assert_array_equal(read["brain"], brain.astype(np.float32))


def test_damage_of_a_storage_is_an_error_of_what_lies_on_it(tmp_path):
    path, storage = tmp_path / "small.pth", np.arange(12, dtype=np.float32)
    value = {
        "part": tensor("0", storage, legacy=False, shape=(2,)),
        "whole": tensor("1", 2 * storage, legacy=False),
        "other": tensor("2", 3 * storage, legacy=False),
    }
    content = zip_file(value, {"0": storage, "1": 2 * storage, "2": 3 * storage})
    for damaged in (storage, 2 * storage):
        at = content.index(damaged.tobytes()) + 47
        content = content[:at] + b"\x00" + content[at + 1 :]
    path.write_bytes(content)
    lazy = open_state_dict(path)
    np.testing.assert_array_equal(lazy["other"].read(), 3 * storage)
    for name in ("part", "whole"):
        with pytest.raises(WeightsError, match=r"is damaged: the 48 bytes .* do not have the CRC"):
            lazy[name].read()


@pytest.mark.parametrize("write", [legacy_file, zip_file])
def test_several_dicts_in_one_file(write, tmp_path):
    path, array = tmp_path / "all.pt", np.arange(3, dtype=np.float32)
    state = {"w": tensor("0", array, legacy=write is legacy_file)}
    path.write_bytes(write({"step": 5, "model": {}, "ema": state}, {"0": array}))
    np.testing.assert_array_equal(open_state_dict(path, key="ema")["w"].read(), array)
    message = r"all.pt holds the dicts 'model', 'ema', not one dict .* key has to name one"
    with pytest.raises(WeightsError, match=message):
        open_state_dict(path)
    with pytest.raises(WeightsError, match=r"key is 'step', .* it holds the dicts 'model', 'ema'"):
        open_state_dict(path, key="step")
    path.write_bytes(write(state, {"0": array}))
    with pytest.raises(WeightsError, match=r"key is 'ema', .* it holds one dict of tensors"):
        open_state_dict(path, key="ema")


STORAGE = np.arange(12, dtype=np.float32)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ({"shape": (13,)}, "reaches beyond its storage"),
        ({"shape": (3,), "offset": 10}, "reaches beyond its storage"),
        ({"shape": (1000, 1000, 1000), "strides": (0, 0, 0)}, "reaches beyond its storage"),
        ({"shape": (3,), "strides": (-1,), "offset": 5}, "has an offset, a shape and strides"),
        ({"shape": (3,), "offset": -3}, "has an offset, a shape and strides"),
        ({"shape": (3, 2), "strides": (1,)}, "has an offset, a shape and strides"),
        ({"shape": ("3",), "strides": (1,)}, "has an offset, a shape and strides"),
        ({"view": ("1", 0, 4)}, "is no storage of its own"),
        ({"length": 11}, "storage 0 has the length 12, and 11 before"),
    ],
)
def test_windows_that_are_not_there(window, message, tmp_path):
    path = tmp_path / "small.pth"
    path.write_bytes(legacy_file({"x": tensor("0", STORAGE, **window)}, {"0": STORAGE}))
    with pytest.raises(WeightsError, match=message):
        read_state_dict(path)


@pytest.mark.parametrize("write", [legacy_file, zip_file, lambda value, _: pickled(value)])
@pytest.mark.parametrize(
    "name",
    [("os", "system"), ("posix", "system"), ("builtins", "eval"), ("torch", "load")],
)
def test_a_pickle_that_calls_something_is_refused(name, write, tmp_path):
    path, proof = tmp_path / "evil.pth", tmp_path / "proof"
    path.write_bytes(write({"x": Call(Named(*name), (f"touch {proof}",))}, {}))
    with pytest.raises(WeightsError, match=rf"{'.'.join(name)}.*was not called.*refused") as told:
        read_state_dict(path)
    assert str(path) in str(told.value)
    assert not proof.exists()


@pytest.mark.parametrize("by", ["dict", "slots"])
def test_what_a_pickle_sets_on_a_function_is_gone_with_it(by, tmp_path):
    evil, good = tmp_path / "evil.pth", tmp_path / "good.pth"
    good.write_bytes(as_file(SMALL))
    attributes = {"__name__": "evil", "__kwdefaults__": {"x": 1}}
    for name in (
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch", "FloatStorage"),
        ("collections", "OrderedDict"),
    ):
        made = code(Named(*name)) + code(attributes if by == "dict" else (None, attributes)) + b"b"
        evil.write_bytes(b"\x80\x02" + made + b".")
        with pytest.raises(WeightsError):
            read_state_dict(evil)
    np.testing.assert_array_equal(read_state_dict(good)["a.weight"], SMALL["a.weight"])
    assert collections.OrderedDict.__name__ == "OrderedDict"


@pytest.mark.thorough
@pytest.mark.parametrize("legacy", [True, False])
def test_every_truncation_is_told(legacy, tmp_path):
    path, content = tmp_path / "cut.pth", as_file(SMALL, legacy=legacy)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError) as told:
            read_state_dict(path)
        assert str(path) in str(told.value)


@pytest.mark.thorough
@pytest.mark.parametrize("legacy", [True, False])
def test_damage_is_told_or_harmless(legacy, tmp_path):
    # What a flipped byte does to a dict of tensors is for checksums to find; here it must not
    # raise anything else, nor call anything.
    path, content = tmp_path / "damaged.pth", as_file(SMALL, legacy=legacy)
    rng, told = np.random.default_rng(0), 0
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            read_state_dict(path)
        except WeightsError:
            told += 1
    assert told > len(content) / 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a dict of tensors as PyTorch writes it"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a dict of tensors as PyTorch writes it"),
        (pickled(5), "does not begin with PyTorch's magic number"),
        (legacy_file([1, 2], {}), "it holds a list in place of a dict"),
        (legacy_file({"x": 1}, {}), "x is a int, not a tensor"),
        (legacy_file({1: 1}, {}), "the name 1 is not a string"),
        (zip_file({}, {}, order=b"big"), "big-endian"),
        (
            zip_file(
                {"x": tensor("0", STORAGE, legacy=False)},
                {"0": STORAGE},
                compression=zipfile.ZIP_DEFLATED,
            ),
            "storage 0 is compressed",
        ),
    ],
)
def test_other_files_are_refused(content, message, tmp_path):
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as told:
        read_state_dict(path)
    assert str(path) in str(told.value)


# ---- Files that would fill the memory or compute without end


def refused_weights(tmp_path, contents, *parts, **options):
    path = tmp_path / "x.pth"
    path.write_bytes(contents)
    ends_in_one_sentence(read_state_dict, path, *parts, error=WeightsError, **options)


def in_zip(pickle, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle)
    return file.getvalue()


def nested(depth):
    """Opcodes of a tuple of two of a tuple of two ...: 2^depth leaves in few bytes."""
    return b")" + b"".join(b"q\x00h\x00\x86" for _ in range(depth))


PICKLES = {
    "a key whose hash takes for ever": b"}" + nested(100) + b"K\x01s.",
    "keys of many at once": b"}(" + nested(100) + b"K\x01u.",
    "a storage that would be printed for ever": nested(100) + b"Q.",
    "a name that would be printed for ever": b"}(X\x01\x00\x00\x00x" + nested(100) + b"u.",
    "a set": b"\x8f(" + nested(100) + b"\x90.",
    "bytes of a large number": b"\x8e" + b"\xff\xff\xff\xff\xff\xff\xff\x0f.",
    "a string of a large number": b"\x8d" + b"\xff\xff\xff\xff\xff\xff\xff\x0f.",
    "many small objects": b"(" + b"}" * 500_000 + b"t.",
    "lists in lists": b"]" * 10_000 + b"a" * 9_999 + b".",
    "tuples in tuples": b")" + b"\x85" * 50_000 + b".",
    "an integer of many digits": b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b".",
    "an integer in words": b"I" + b"9" * 100_000 + b"\n.",
    "a long name": b"c" + b"os" * 10**5 + b"\n" + b"x" * 10**5 + b"\n.",
    "a function that would be printed for ever": nested(100) + b"X\x01\x00\x00\x00x\x93.",
    "a name from the stack": b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93.",
    "marks without end": b"(" * 150_000,
    "no end": b"}",
    "too few on the stack": b"0.",
    "no mark": b"t.",
}


@pytest.mark.parametrize("pickle", PICKLES.values(), ids=PICKLES.keys())
def test_pickles_that_never_end_or_fill_the_memory(tmp_path, pickle):
    for contents in (in_zip(b"\x80\x02" + pickle), b"\x80\x02" + pickle):
        refused_weights(tmp_path, contents, most_bytes=2**27)


def test_shapes_of_very_many_axes_and_digits(tmp_path):
    array = np.arange(12, dtype=np.float32)
    for window in (
        {"shape": (0,) * 1000, "strides": (0,) * 1000},
        {"shape": (1,) * 100, "strides": (1,) * 100},
    ):
        contents = legacy_file({"x": tensor("0", array, **window)}, {"0": array})
        refused_weights(
            tmp_path, contents, "an offset, a shape and strides that no tensor can have"
        )


def test_weights_that_are_compressed_or_have_no_end(tmp_path):
    bomb = in_zip(b"\x80\x02}" + b"0" * BOMB + b".", zipfile.ZIP_DEFLATED)
    assert len(bomb) < BOMB / 500
    refused_weights(tmp_path, bomb, "'archive/data.pkl' is compressed, which PyTorch never does")
    path = tmp_path / "large.pth"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse: it takes no room on the disk
    message = "it has 1,099,511,627,776 bytes"
    ends_in_one_sentence(read_state_dict, path, message, error=WeightsError)
    os.mkfifo(tmp_path / "pipe.pth")
    message = "not a regular file"
    ends_in_one_sentence(read_state_dict, tmp_path / "pipe.pth", message, error=WeightsError)


def test_members_of_an_archive_without_end(tmp_path):
    # More names than any network has tensors, and a pickle that is longer than any of one.
    with zipfile.ZipFile(tmp_path / "names.pth", "w") as archive:
        for number in range(200):
            archive.writestr(f"{number:050000}", b"")
    read, message = read_state_dict, "more than 4,194,304 bytes that are no tensors"
    ends_in_one_sentence(read, tmp_path / "names.pth", message, error=WeightsError)
    pickle = b"\x80\x02" + b"}0" * 3_000_000 + b"}."
    refused_weights(tmp_path, in_zip(pickle), "'archive/data.pkl' has 6,000,004 bytes")


@pytest.mark.parametrize("write", [legacy_file, zip_file])
def test_many_tensors_on_one_storage(tmp_path, write):
    array = np.zeros(2**18, np.float32)
    window = tensor("0", array, legacy=write is legacy_file)
    contents = write({f"{number}": window for number in range(200)}, {"0": array})
    refused_weights(tmp_path, contents, "more than twice the bytes of the file")


def test_attributes_parameters_and_a_memo_of_a_state_dict(tmp_path):
    # With attributes (the versions of layers), parameters, and a memo.
    names = b"ccollections\nOrderedDict\nq\x00)Rq\x01"
    large = b"r\xff\xff\xff\x7f"  # a number that would make Python's own memo 16 GB
    attributes = b"}" + large + b"X\x09\x00\x00\x00_metadatah\x00)R" + b"sb"
    array = np.arange(6, dtype=np.float32)
    parameter = (
        b"ctorch._utils\n_rebuild_parameter\n("
        + code(tensor("0", array, legacy=False, shape=(2, 3)))
        + b"\x89h\x00)RtR"
    )
    pickle = b"\x80\x02" + names + b"(" + code("w") + parameter + b"u" + attributes + b"."
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/data/0", array.tobytes())
    read = read_state_dict(path)
    assert list(read) == ["w"]
    np.testing.assert_array_equal(read["w"], array.reshape(2, 3))
