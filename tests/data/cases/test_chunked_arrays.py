"""Chunked arrays: round trips, how much of a file a slice reads, and a full disk."""

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
def test_a_slice_of_the_file_is_that_of_the_array(shape, dtype, data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "array.b2nd"
    array = np.random.default_rng(0).normal(0, 50, shape).astype(dtype)
    write_chunked(path, array)
    bounds = [sorted((data.draw(st.integers(0, length)), data.draw(st.integers(0, length)))) for length in shape]
    part = tuple(slice(start, stop) for start, stop in bounds)
    chunked = open_chunked(path)
    assert (chunked.shape, chunked.dtype) == (array.shape, array.dtype)
    assert chunked[part].dtype == dtype
    assert np.array_equal(chunked[part], array[part])
    assert np.array_equal(chunked[...], array)


def test_nan_infinity_and_negative_zero_are_kept(tmp_path):
    array = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45], np.float32).reshape(1, 1, 1, 5)
    write_chunked(tmp_path / "array.b2nd", array)
    assert open_chunked(tmp_path / "array.b2nd")[...].tobytes() == array.tobytes()


def test_labels_are_compressed_well(tmp_path):
    label = np.zeros((1, 64, 96, 96), np.uint8)
    label[:, 10:40, 20:70, 30:80] = 1
    write_chunked(tmp_path / "label.b2nd", label)
    assert (tmp_path / "label.b2nd").stat().st_size < label.nbytes / 50


def test_a_patch_is_read_without_the_rest_of_its_file(tmp_path):
    """A patch is read correctly even if most of a chunk that it does not touch is lost."""
    size = (2 * BLOCK[1] * 4, BLOCK[2] * 4, BLOCK[3] * 4)
    array = np.random.default_rng(0).integers(0, 2**31, (1, *size)).astype(np.float32)
    path = tmp_path / "array.b2nd"
    write_chunked(path, array)
    content = path.read_bytes()
    # The file has two chunks, one after the other; most of the second is overwritten.
    quarter = len(content) // 4
    path.write_bytes(content[: 2 * quarter + 4000] + bytes(quarter - 4000) + content[3 * quarter :])
    chunked = open_chunked(path)
    first = (slice(None), slice(0, 30), slice(5, 60), slice(7, 90))
    assert np.array_equal(chunked[first], array[first])
    # An error is acceptable too, but the second half must not be intact.
    with suppress(RuntimeError):
        assert not np.array_equal(chunked[:, size[0] // 2 :], array[:, size[0] // 2 :])


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(self, data):
        with open(self, "wb") as handle:
            handle.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        write_chunked(tmp_path / "array.b2nd", np.zeros((1, 2, 3, 4), np.float32))
    assert list(tmp_path.iterdir()) == []


def test_corrupt_files_are_errors(tmp_path):
    write_chunked(tmp_path / "array.b2nd", np.ones((1, 20, 30, 40), np.float32))
    content = (tmp_path / "array.b2nd").read_bytes()
    (tmp_path / "array.b2nd").write_bytes(content[: len(content) // 2])
    with pytest.raises((OSError, RuntimeError)):
        open_chunked(tmp_path / "array.b2nd")
    with pytest.raises(OSError, match="absent"):
        open_chunked(tmp_path / "absent.b2nd")
