"""Chunked arrays: round trips, how much of a file a slice reads, damaged files, and a full disk."""

import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isal.isal_zlib import crc32

from volseg.data.cases.chunked_arrays import BLOCK, LENGTHS, MAGIC, DamagedError, open_chunked, write_chunked
from volseg.errors import ResourceError


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)),
    dtype=st.sampled_from([np.float32, np.uint8, np.int16]),
    data=st.data(),
)
def test_a_slice_of_the_file_is_that_of_the_array(shape, dtype, data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "array.blocks"
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
    write_chunked(tmp_path / "array.blocks", array)
    assert open_chunked(tmp_path / "array.blocks")[...].tobytes() == array.tobytes()


def test_labels_are_compressed_well(tmp_path):
    label = np.zeros((1, 64, 96, 96), np.uint8)
    label[:, 10:40, 20:70, 30:80] = 1
    write_chunked(tmp_path / "label.blocks", label)
    assert (tmp_path / "label.blocks").stat().st_size < label.nbytes / 50


def test_a_patch_is_read_without_the_rest_of_its_file(tmp_path):
    """A patch is read although blocks that it does not touch are damaged; these are not read silently."""
    size = (2 * BLOCK[1] * 4, BLOCK[2] * 4, BLOCK[3] * 4)
    array = np.random.default_rng(0).integers(0, 2**31, (1, *size)).astype(np.float32)
    path = tmp_path / "array.blocks"
    write_chunked(path, array)
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[: half + 4000] + bytes(half - 4000 + len(content) % 2))
    chunked = open_chunked(path)
    first = (slice(None), slice(0, 30), slice(5, 60), slice(7, 90))
    assert np.array_equal(chunked[first], array[first])
    with pytest.raises(DamagedError, match="checksum"):
        chunked[:, size[0] // 2 :]


def test_no_flipped_bit_and_no_cut_goes_unnoticed(tmp_path):
    path, array = tmp_path / "array.blocks", np.random.default_rng(0).normal(size=(2, 20, 33, 7)).astype(np.float32)
    write_chunked(path, array)
    content, rng = path.read_bytes(), np.random.default_rng(1)
    beginning = range(len(MAGIC) + 200)
    for place in (*beginning, *rng.integers(len(content), size=100)):
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        with pytest.raises(DamagedError):
            open_chunked(path)[...]
    for length in (0, 5, 20, 60, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DamagedError):
            open_chunked(path)
    for other in (content + b"more", b"", bytes(len(content)), rng.bytes(5000)):
        path.write_bytes(other)
        with pytest.raises(DamagedError):
            open_chunked(path)


@pytest.mark.parametrize(
    "document",
    [
        {"shape": [10**9] * 3, "dtype": "float32", "block": [1, 1, 1]},
        {"shape": [4, 4], "dtype": "float32", "block": [10**5, 10**5]},
        {"shape": [4, 4], "dtype": "object", "block": [4, 4]},
        {"shape": [4, -4], "dtype": "uint8", "block": [4, 4]},
        {"shape": [4, 4], "dtype": "uint8", "block": [4, 0]},
        {"shape": [4, 4], "dtype": "uint8", "block": [4]},
        {"shape": 4, "dtype": "uint8", "block": 4},
        {"shape": [], "dtype": "uint8", "block": []},
        ["shape"],
    ],
)
def test_a_header_that_lies_is_an_error_although_its_checksum_is_right(tmp_path, document):
    path, table = tmp_path / "array.blocks", b""
    header = json.dumps(document).encode()
    path.write_bytes(MAGIC + LENGTHS.pack(len(header), crc32(header + table)) + header + table)
    with pytest.raises(DamagedError):
        open_chunked(path)


@pytest.mark.parametrize("place", [4, 12])
def test_a_block_that_lies_about_its_size_is_an_error_although_its_checksum_is_right(tmp_path, place):
    path = tmp_path / "array.blocks"
    write_chunked(path, np.random.default_rng(0).normal(size=(1, 8, 8, 8)).astype(np.float32))
    content = path.read_bytes()
    size, _ = LENGTHS.unpack(content[len(MAGIC) :][:8])
    start = len(MAGIC) + 8
    header, block = content[start : start + size], bytearray(content[start + size + 8 :])
    block[place : place + 4] = (2**31 - 1).to_bytes(4, "little")
    table = np.array([[len(block), crc32(block)]], "<u4").tobytes()
    path.write_bytes(MAGIC + LENGTHS.pack(size, crc32(header + table)) + header + table + block)
    with pytest.raises(DamagedError, match="size"):
        open_chunked(path)[...]


def test_links_pipes_and_folders_are_not_read(tmp_path):
    write_chunked(tmp_path / "array.blocks", np.ones((1, 2, 3, 4), np.float32))
    (tmp_path / "link.blocks").symlink_to(tmp_path / "array.blocks")
    os.mkfifo(tmp_path / "pipe.blocks")
    (tmp_path / "folder.blocks").mkdir()
    for name in ("link", "pipe", "folder", "absent"):
        with pytest.raises(OSError, match=name):
            open_chunked(tmp_path / f"{name}.blocks")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(self, data):
        with open(self, "wb") as handle:
            handle.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        write_chunked(tmp_path / "array.blocks", np.zeros((1, 2, 3, 4), np.float32))
    assert list(tmp_path.iterdir()) == []
