"""Compressed arrays: what comes back, how much of a file a slice needs, and what a full disk leaves."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volseg.data.cases.chunked_arrays import BLOCK, open_chunked, write_chunked
from volseg.errors import ResourceError


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)),
    dtype=st.sampled_from([np.float32, np.uint8, np.int16]),
    data=st.data(),
)
def test_a_slice_is_that_of_the_array(shape, dtype, data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "array.b2nd"
    array = np.random.default_rng(0).normal(0, 50, shape).astype(dtype)
    write_chunked(path, array)
    bounds = [sorted((data.draw(st.integers(0, length)), data.draw(st.integers(0, length)))) for length in shape]
    part = tuple(slice(start, stop) for start, stop in bounds)
    packed = open_chunked(path)
    assert (packed.shape, packed.dtype) == (array.shape, array.dtype)
    assert packed[part].dtype == dtype
    assert np.array_equal(packed[part], array[part])
    assert np.array_equal(packed[...], array)


def test_numbers_that_are_none_and_zeros_with_a_sign_come_back(tmp_path):
    array = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45], np.float32).reshape(1, 1, 1, 5)
    write_chunked(tmp_path / "array.b2nd", array)
    assert open_chunked(tmp_path / "array.b2nd")[...].tobytes() == array.tobytes()


def test_labels_take_a_small_part_of_their_bytes(tmp_path):
    label = np.zeros((1, 64, 96, 96), np.uint8)
    label[:, 10:40, 20:70, 30:80] = 1
    write_chunked(tmp_path / "label.b2nd", label)
    assert (tmp_path / "label.b2nd").stat().st_size < label.nbytes / 50


def test_a_patch_is_read_without_the_rest_of_its_file(tmp_path):
    """Of a chunk without a part in it most may be lost, and a patch is still what it was."""
    size = (2 * BLOCK[1] * 4, BLOCK[2] * 4, BLOCK[3] * 4)
    array = np.random.default_rng(0).integers(0, 2**31, (1, *size)).astype(np.float32)
    path = tmp_path / "array.b2nd"
    write_chunked(path, array)
    content = path.read_bytes()
    # Two chunks lie one after the other; of the second one, most is lost.
    quarter = len(content) // 4
    path.write_bytes(content[: 2 * quarter + 4000] + bytes(quarter - 4000) + content[3 * quarter :])
    packed = open_chunked(path)
    first = (slice(None), slice(0, 30), slice(5, 60), slice(7, 90))
    assert np.array_equal(packed[first], array[first])
    # An error would do as well; what must not be is that the rest is there.
    with suppress(RuntimeError):
        assert not np.array_equal(packed[:, size[0] // 2 :], array[:, size[0] // 2 :])


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(self, data):
        with open(self, "wb") as handle:
            handle.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        write_chunked(tmp_path / "array.b2nd", np.zeros((1, 2, 3, 4), np.float32))
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_errors(tmp_path):
    write_chunked(tmp_path / "array.b2nd", np.ones((1, 20, 30, 40), np.float32))
    content = (tmp_path / "array.b2nd").read_bytes()
    (tmp_path / "array.b2nd").write_bytes(content[: len(content) // 2])
    with pytest.raises((OSError, RuntimeError)):
        open_chunked(tmp_path / "array.b2nd")
    with pytest.raises(OSError, match="absent"):
        open_chunked(tmp_path / "absent.b2nd")
