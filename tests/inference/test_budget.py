"""Memory planned before it is used."""

import gzip
import json
import os
import re
import struct
import zipfile
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tests.data.images import write_series
from tests.pipeline import blob, volseg, write_model
from volseg import Segmenter
from volseg.data.io.read_cost import reading_bytes
from volseg.data.io.readers.itk import write_file
from volseg.data.io.reading import read_scan, scan_from_array
from volseg.errors import InputError, UsageError
from volseg.inference import budget
from volseg.inference.budget import GIB, MemoryEstimate, parse_size
from volseg.inference.room import require_room
from volseg.inference.windows import window_starts

AFFINE = np.diag([1.5, 1.5, 2.1, 1.0])


@pytest.mark.parametrize(
    ("text", "size"),
    [("4G", 4 * GIB), ("1.5GiB", GIB * 3 // 2), ("512m", 2**29), ("2048", 2048), (" 3 KB ", 3072), ("0.5T", 2**39)],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "0", "four", "4 apples", "4GG"])
def test_invalid_sizes_are_rejected(text):
    with pytest.raises(UsageError, match="is not an amount of memory"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "size"), [("4", "4 bytes"), ("1", "1 byte"), ("512.5", "512 bytes"), ("0.5K", "512 bytes")]
)
def test_a_size_without_its_unit_is_not_taken_for_a_few_bytes(text, size):
    with pytest.raises(UsageError, match=rf"^'{text}' is an amount of memory of {size}\. Write for example 4G"):
        parse_size(text)


def save(path, array, endianness="<", scaled=False):
    """A file of any format."""
    if path.suffix in (".nrrd", ".mha"):
        write_file(array, AFFINE, path)
    elif path.suffix == ".mgz":
        nibabel.save(nibabel.MGHImage(array, AFFINE.astype(np.float32)), path)
    else:
        header = nibabel.Nifti1Header(endianness=endianness)
        header.set_data_dtype(array.dtype)
        image = nibabel.Nifti1Image(array, AFFINE, header)
        if scaled:
            image.header.set_slope_inter(0.5, 1)
        nibabel.save(image, path)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mgz", ".nrrd"])
def test_the_header_gives_the_memory_for_reading(tmp_path, dtype, suffix):
    array = np.arange(4 * 5 * 6).reshape(4, 5, 6).astype(dtype)
    path = tmp_path / f"scan{suffix}"
    save(path, array)
    # MGH is big-endian, and bytes have no order.
    copies = 2 if suffix == ".mgz" and array.itemsize > 1 else 1
    assert reading_bytes(path) == copies * array.nbytes == copies * read_scan(path).channels[0].nbytes


@pytest.mark.parametrize(
    ("suffix", "endianness", "scaled", "per_voxel"),
    [
        (".nii", "<", True, 2 + 4),
        (".nii", ">", False, 2 + 2),
        (".nii", ">", True, 2 + 4),
        (".nii.gz", "<", True, 2 + 4),
        (".nii.gz", ">", False, 2 + 2),
    ],
)
def test_stored_and_scaled_values_are_in_memory_together(tmp_path, suffix, endianness, scaled, per_voxel):
    array = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    path = tmp_path / f"scan{suffix}"
    save(path, array, endianness, scaled)
    assert read_scan(path).channels[0].dtype == (np.float32 if scaled else np.int16)
    assert reading_bytes(path) == per_voxel * 120


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_of_nrrd_and_metaimage_the_voxels_alone_are_in_memory(tmp_path, suffix, compressed):
    image = sitk.GetImageFromArray(np.arange(8000, dtype=np.int16).reshape(20, 20, 20) // 100)
    sitk.WriteImage(image, str(tmp_path / f"scan{suffix}"), useCompression=compressed)
    assert reading_bytes(tmp_path / f"scan{suffix}") == 16000


def test_a_nrrd_or_metaimage_without_a_usable_header_takes_no_memory(tmp_path):
    for name in ("a.nrrd", "a.mha"):
        (tmp_path / name).write_bytes(b"<html>")
        assert reading_bytes(tmp_path / name) == 0


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mgz", ".nrrd", ".mha"])
def test_a_file_too_small_for_what_its_header_declares_takes_no_memory(tmp_path, suffix):
    """It is damaged, which reading says; more memory would not help."""
    path, small = tmp_path / f"scan{suffix}", np.zeros((4, 5, 6), np.int16)
    save(path, small)
    packed = suffix in (".nii.gz", ".mgz")
    content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    sizes = {
        ".mgz": (struct.pack(">3i", 4, 5, 6), struct.pack(">3i", 30000, 30000, 30000)),
        ".nrrd": (b"sizes: 4 5 6", b"sizes: 30000 30000 30000"),
        ".mha": (b"DimSize = 4 5 6", b"DimSize = 30000 30000 30000"),
    }.get(suffix, (struct.pack("<4h", 3, 4, 5, 6), struct.pack("<4h", 3, 30000, 30000, 30000)))
    assert content.count(sizes[0]) == 1
    content = content.replace(*sizes)
    path.write_bytes(gzip.compress(content) if packed else content)
    assert reading_bytes(path) == 0
    with pytest.raises(InputError, match=r"damaged|truncated|fewer|short|ends"):
        read_scan(path)


def test_dicom_takes_three_times_the_size_of_its_pixels(tmp_path):
    """Two slices of 4 x 6 pixels of 16 bits: 96 bytes."""
    positions = np.array([[0, 0, 0], [0, 0, 2]])
    folder = write_series(tmp_path / "series", np.arange(48).reshape(4, 6, 2).astype(np.int16), positions)
    first = next(folder.iterdir())
    with zipfile.ZipFile(tmp_path / "series.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(first, "1.dcm")
    assert reading_bytes(folder) == 3 * 96
    assert reading_bytes(first) == reading_bytes(tmp_path / "series.zip") == 3 * 48


def corrupt_nifti(at, value):
    """The bytes of a NIfTI file with some of them replaced."""
    whole = bytearray(nibabel.Nifti1Image(np.ones((4, 5, 6), np.int16), AFFINE).to_bytes())
    whole[at : at + len(value)] = value
    return bytes(whole)


CORRUPT = {
    "empty.nii": b"",
    "empty.nii.gz": b"",
    "empty.mgz": b"",
    "empty.mha": b"",
    "empty.nrrd": b"",
    "empty.zip": b"",
    "no.nii": b"no image" * 100,
    "no.mha": b"no image" * 100,
    "no.nrrd": b"NRRD0004\ntype: apple\n\n",
    "no.mgh": b"\0\0\0\1" + b"\7" * 400,
    "short.mgh": b"\0\0\0\1\0\0",
    "zero.mgh": b"\0\0\0\1" + bytes(400),
    "magic.nii.gz": b"\x1f\x8bnothing",
    "deflate.nii.gz": gzip.compress(corrupt_nifti(0, b""))[:10] + b"\xff" * 100,
    "cut.nii.gz": gzip.compress(os.urandom(1000))[:60],
    "datatype.nii": corrupt_nifti(70, b"\x77\x77"),
    "dimensions.nii": corrupt_nifti(40, b"\0\0"),
    "negative.nii": corrupt_nifti(42, b"\xff\xff"),
    "slope.nii": corrupt_nifti(112, np.array([1, np.inf], "<f4").tobytes()),
    "half.nii": corrupt_nifti(0, b"")[:200],
    "half2.nii": nibabel.Nifti2Image(np.ones((4, 5, 6), np.int16), AFFINE).to_bytes()[:400],
    "cut.zip": b"PK\x03\x04" + bytes(100),
    "directory.zip": b"PK\x01\x02" + bytes(10) + b"PK\x05\x06" + bytes(4) + b"\1\0\1\0\x0e\0\0\0" + bytes(6),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_corrupt_files_have_no_size(tmp_path, capfd, name):
    (tmp_path / name).write_bytes(CORRUPT[name])
    assert reading_bytes(tmp_path / name) == 0
    assert reading_bytes(tmp_path / f"absent_{name}") == 0
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image, nibabel.MGHImage])
def test_a_corrupt_header_neither_raises_nor_prints(tmp_path, capfd, kind, compressed):
    rng = np.random.default_rng(0)
    whole = np.frombuffer(kind(np.ones((4, 5, 6), np.int16), AFFINE.astype(np.float32)).to_bytes(), np.uint8)
    suffix = {False: ".mgh", True: ".mgz"} if kind is nibabel.MGHImage else {False: ".nii", True: ".nii.gz"}
    path = tmp_path / f"scan{suffix[compressed]}"
    for _ in range(100):
        broken = whole.copy()
        broken[rng.integers(0, 352, 8)] = rng.integers(0, 256, 8)
        content = broken[: rng.integers(1, 2 * len(whole))].tobytes()
        path.write_bytes(gzip.compress(content, 1) if compressed else content)
        # Whatever it answers; the point is that it does.
        reading_bytes(path)
    assert capfd.readouterr() == ("", "")


def test_a_scan_above_the_limit_is_rejected_before_reading():
    with pytest.raises(InputError, match=r"scan\.nii takes 3\.00 GiB, .* but --max-memory is 2\.00 GiB"):
        require_room(3 * GIB, 2 * GIB, "scan.nii")


def test_a_voxel_size_whose_grid_exceeds_the_machine_is_rejected(tmp_path):
    segmenter = Segmenter.load(write_model(tmp_path / "m.safetensors"), device="cpu")
    with pytest.raises(
        InputError,
        match=r"The scan has voxels of 900 x 900 x 900 mm, and the model works at 2 x 1.5 x 1.5 mm: .* windows.*GiB",
    ):
        segmenter((blob(), np.diag([900.0, 900.0, 900.0, 1.0])))


def coarse(tmp_path, **changes):
    """A tiny scan of huge voxels, and how it would be segmented."""
    segmenter = Segmenter.load(write_model(tmp_path / "m.safetensors"), device="cpu", precision="fp32")
    scan = scan_from_array(blob((6, 6, 6)), np.diag([30.0, 30.0, 30.0, 1.0]))
    windows = replace(segmenter.labeller.windows, **changes)
    return replace(segmenter, labeller=replace(segmenter.labeller, windows=windows)), scan


def test_a_voxel_size_that_makes_many_windows_is_questioned_before_the_work(tmp_path, monkeypatch, caplog):
    segmenter, scan = coarse(tmp_path)
    need = MemoryEstimate(segmenter.card, scan, segmenter.labeller.windows, torch.float32, segmenter.device)
    windows = segmenter.labeller.windows
    per_axis = [len(window_starts(size, 16, windows.overlap)) for size in need.grid]
    assert need.window_count == np.prod(per_axis) > 1000
    monkeypatch.setattr(type(segmenter.labeller), "label", lambda *_: pytest.fail("the work has begun"))
    with caplog.at_level("INFO", "volseg"), pytest.raises(pytest.fail.Exception):
        segmenter(scan)
    (said,) = [text for text in caplog.messages if "windows" in text]
    assert "voxels of 30 x 30 x 30 mm, and the model works at 2 x 1.5 x 1.5 mm" in said
    assert f"{need.window_count:,} windows. Check that the voxel size" in said


def test_the_question_is_in_the_record_and_asked_only_of_coarse_scans_of_many_windows(tmp_path, monkeypatch):
    segmenter, scan = coarse(tmp_path, overlap=0.0)
    monkeypatch.setattr(budget, "MANY_WINDOWS", 300)
    assert segmenter(scan).warnings[-1].endswith("Check that the voxel size of the scan is in millimetres.")
    monkeypatch.setattr(budget, "MANY_WINDOWS", 1_000_000)
    assert not [text for text in segmenter(scan).warnings if "windows" in text]
    monkeypatch.setattr(budget, "MANY_WINDOWS", 1)
    fine = scan_from_array(blob((40, 40, 40)), np.diag([1.5, 1.5, 2.0, 1.0]))
    assert not [text for text in segmenter(fine).warnings if "windows" in text]


def test_smaller_chunks_give_the_same_labels(tmp_path, monkeypatch):
    model = write_model(tmp_path / "m.safetensors")
    expected = Segmenter.load(model, device="cpu", precision="fp32")((blob(), AFFINE)).labels
    monkeypatch.setattr(budget, "CHUNKS", (1 << 40, 64))
    limited = Segmenter.load(model, device="cpu", precision="fp32", max_memory="64G")
    np.testing.assert_array_equal(limited((blob(), AFFINE)).labels, expected)


def test_a_scan_that_does_not_fit_is_rejected_with_the_reason_and_others_are_done(tmp_path):
    model = write_model(tmp_path / "m.safetensors")
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(blob(), AFFINE), tmp_path / "in" / "small.nii.gz")
    large = nibabel.Nifti1Image(np.zeros((800, 800, 800), np.uint8), AFFINE)
    nibabel.save(large, tmp_path / "in" / "large.nii.gz")
    done = volseg("predict", tmp_path / "in", "--model", model, "--output", tmp_path / "out", "--max-memory", "700M",
                  "--json")  # fmt: skip
    assert done.returncode == 3, done.stderr
    cases = {one["name"]: one for one in json.loads(done.stdout)["cases"]}
    assert "--max-memory is 0.68 GiB" in cases["large"]["error"]
    assert cases["small"]["peak_memory_bytes"] <= 700 * 2**20
    assert sorted(os.listdir(tmp_path / "out")) == ["small.json", "small.nii.gz"]


def test_a_limit_that_holds_one_scan_holds_many(tmp_path):
    model = write_model(tmp_path / "m.safetensors")
    (tmp_path / "in").mkdir()
    scan = np.zeros((400, 400, 400), np.uint8)
    scan[200:300, 200:300] = 9
    image = nibabel.Nifti1Image(scan, np.diag([0.05, 0.05, 0.05, 1]))
    for name in ("one", "other", "third"):
        nibabel.save(image, tmp_path / "in" / f"{name}.nii.gz")
    predict = ("predict", "--model", model, "--json")
    alone = volseg(*predict, tmp_path / "in" / "one.nii.gz", "--output", tmp_path / "o.nii.gz", "--max-memory", "64G")
    planned = float(re.search(r"Memory: ([0-9.]+) GiB", alone.stderr)[1])
    limit = planned * 1.05
    done = volseg(*predict, tmp_path / "in", "--output", tmp_path / "out", "--max-memory", f"{limit:.3f}G")
    assert done.returncode == 0, done.stderr
    assert json.loads(alone.stdout)["cases"][0]["peak_memory_bytes"] <= planned * GIB
    assert max(case["peak_memory_bytes"] for case in json.loads(done.stdout)["cases"]) <= limit * GIB
