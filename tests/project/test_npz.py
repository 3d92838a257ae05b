"""Archives of arrays that are written in parts."""

import numpy as np
import pytest

from ddpm_jax.npz import StreamedArray, load_npz, write_npz


def write(path, arrays):
    with path.open("wb") as file:
        write_npz(file, arrays)


def test_numpy_reads_what_was_written_in_parts(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 4, 1), np.uint8)
    parts = [images[:7], images[7:7], images[7:].transpose(0, 2, 1, 3).swapaxes(1, 2)]
    write(
        tmp_path / "x.npz",
        {
            "arr_0": StreamedArray((20, 3, 4, 1), np.dtype(np.uint8), iter(parts)),
            "levels": StreamedArray((), np.dtype(np.int64), [np.array(17)]),
            "about": StreamedArray((), np.dtype("<U3"), [np.array("abc")]),
        },
    )
    with np.load(tmp_path / "x.npz") as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], images)
        assert arrays["levels"] == 17
        assert arrays["about"] == "abc"
    arrays, _ = load_npz(tmp_path / "x.npz", most_bytes=1000)
    np.testing.assert_array_equal(arrays["arr_0"], images)


@pytest.mark.parametrize(
    "part", [np.zeros((2, 3), np.uint8), np.zeros((3, 3)), np.zeros((3, 4), np.uint8)]
)
def test_parts_that_are_not_the_array_are_an_error(tmp_path, part):
    with pytest.raises(ValueError, match="'a'"):
        write(tmp_path / "x.npz", {"a": StreamedArray((3, 3), np.dtype(np.uint8), [part])})
