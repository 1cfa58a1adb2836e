"""What the record of a result says of its origin: the input by UIDs or checksums, the machine, and the files made."""

import hashlib
import json
import shutil
from datetime import UTC, datetime, timedelta

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import volseg
from tests.data.io.dicom.writers import classic, enhanced, write_all
from tests.pipeline import blob, tiny_plan, write_model
from volseg.api import outputs
from volseg.api.outputs import OutputFormat
from volseg.cli import app
from volseg.config import Channel
from volseg.data.io.any_scan import as_scan

ARRAY = blob((12, 14, 8)).astype(np.int16)
AFFINE = np.diag([-1.0, -1, 2, 1])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module")
def segmenter(model):
    return volseg.Segmenter.load(model, device="cpu")


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(("kind", "count"), [(classic, 8), (enhanced, 1)])
def test_dicom_is_named_by_uids_however_it_is_packed(tmp_path, segmenter, kind, count):
    made = kind(ARRAY, StudyInstanceUID="1.2.3.99")
    folder = write_all(tmp_path / "scan", made if count > 1 else [made])
    shutil.make_archive(str(tmp_path / "scan"), "zip", folder)
    uids = sorted(f"1.2.3.4.{k + 1}" for k in range(count))
    expected = {
        "kind": "dicom",
        "study": "1.2.3.99",
        "series": "1.2.3.4",
        "frame_of_reference": "1.2.9",
        "instances": count,
        "instances_sha256": sha256("\n".join(uids).encode()),
    }
    assert segmenter(folder).record["input"] == [expected]
    assert segmenter(tmp_path / "scan.zip").record["input"] == [expected]
    # A scan that was read before names the same.
    assert segmenter(as_scan(folder, 1)).record["input"] == [expected]


def test_one_slice_more_is_another_input(tmp_path, segmenter):
    folder = write_all(tmp_path / "scan", classic(ARRAY))
    before = segmenter(folder).record["input"][0]
    sorted(folder.iterdir(), key=lambda file: file.stem.split("-")[-1])[-1].unlink()
    after = segmenter(folder).record["input"][0]
    assert (before["instances"], after["instances"]) == (8, 7)
    assert before["instances_sha256"] != after["instances_sha256"]


def test_a_file_is_named_by_its_checksum(tmp_path, segmenter):
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(ARRAY, AFFINE), path)
    assert segmenter(path).record["input"] == [{"kind": "file", "sha256": sha256(path.read_bytes())}]
    header = "NRRD0004\ntype: short\ndimension: 3\nsizes: 12 14 8\nendian: little\nencoding: raw\nspace: RAS\n"
    header += "space directions: (1,0,0) (0,1,0) (0,0,2)\nspace origin: (0,0,0)\n"
    header += 'space units: "mm" "mm" "mm"\ndata file: scan.raw\n'
    (tmp_path / "scan.nhdr").write_text(header)
    (tmp_path / "scan.raw").write_bytes(ARRAY.tobytes(order="F"))
    assert segmenter(tmp_path / "scan.nhdr").record["input"] == [
        {"kind": "file", "sha256": sha256(header.encode()), "data_sha256": [sha256(ARRAY.tobytes(order="F"))]}
    ]


def test_every_channel_is_named(tmp_path):
    network = tiny_plan().network.model_copy(update={"in_channels": 2})
    plan = tiny_plan(channels=(Channel(name="T1"), Channel(name="T2")), network=network)
    model = write_model(tmp_path / "two.safetensors", plan)
    write_all(tmp_path / "t1", classic(ARRAY))
    scan = volseg.Segmenter.load(model, device="cpu")
    affine = as_scan(tmp_path / "t1", 1).geometry.affine
    nib.save(nib.Nifti1Image(ARRAY, affine), tmp_path / "t2.nii")
    (done,) = volseg.predict(None, scan, tmp_path / "out", channels={"T1": tmp_path / "t1", "T2": tmp_path / "t2.nii"})
    first, second = done.record["input"]
    assert first["kind"] == "dicom"
    assert second == {"kind": "file", "sha256": sha256((tmp_path / "t2.nii").read_bytes())}


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_is_named_by_its_voxels_in_any_memory_order(segmenter, order):
    array = np.asarray(np.tile(ARRAY, (1, 1, 5)), order=order)
    (found,) = segmenter((array, AFFINE)).record["input"]
    expected = {"kind": "array", "dtype": "int16", "shape": [12, 14, 40], "sha256": sha256(array.tobytes(order="F"))}
    assert found == expected
    assert segmenter(nib.Nifti1Image(array, AFFINE)).record["input"] == [expected]


def test_machine_versions_and_time(segmenter):
    before = datetime.now(UTC) - timedelta(seconds=1)
    record = segmenter((ARRAY, AFFINE)).record
    assert before <= datetime.fromisoformat(record["started"]) <= datetime.now(UTC)
    assert datetime.fromisoformat(record["started"]).utcoffset() == timedelta(0)
    assert record["device"] == "cpu"
    assert len(record["device_name"]) > 3
    assert record["versions"]["torch"] == torch.__version__
    assert record["platform"]


@pytest.fixture
def with_reason(monkeypatch):
    """A format that holds no result without a label, and one that is written in its place; the reasons so far."""

    def write(result, path):
        path.write_text(path.suffix)

    reasons = ["no label was found."]
    picky = OutputFormat("picky", (), ".picky", write, reason_for_none=lambda _: reasons[0], instead="plain")
    monkeypatch.setitem(outputs._added, "picky", picky)
    monkeypatch.setitem(outputs._added, "plain", OutputFormat("plain", (), ".plain", write))
    return reasons


def test_formats_that_cannot_hold_a_result_are_named_with_the_reason(tmp_path, model, with_reason):
    nib.save(nib.Nifti1Image(ARRAY, AFFINE), tmp_path / "scan.nii.gz")
    command = ("predict", tmp_path / "scan.nii.gz", "--model", model, "--output", tmp_path / "out", "--to")

    def run(*options):
        done = CliRunner().invoke(app, [*map(str, command), *options, "--device", "cpu", "--json"])
        assert done.exit_code == 0, done.output
        names = sorted(path.name.removeprefix("scan") for path in (tmp_path / "out").iterdir())
        return (json.loads(done.stdout)["cases"] or [None])[0], names

    reasons, with_reason[0] = with_reason[0], ""
    record, names = run("nifti,picky")
    assert (record["formats"], record["not_written"]) == (["nifti", "picky"], {})
    assert names == [".json", ".nii.gz", ".picky"]
    # The file of the earlier result goes, since there is none for this one.
    with_reason[0] = reasons
    record, names = run("nifti,picky,plain", "--overwrite")
    assert (record["formats"], record["not_written"]) == (["nifti", "plain"], {"picky": reasons})
    assert names == [".json", ".nii.gz", ".plain"]
    assert json.loads((tmp_path / "out" / "scan.json").read_text())["not_written"] == {"picky": reasons}
    # Such a result is complete.
    record, _ = run("nifti,picky", "--skip-existing")
    assert record is None


def test_a_saved_result_names_its_format(tmp_path, segmenter):
    result = segmenter((ARRAY, AFFINE))
    assert result.record["formats"] == []
    result.save(tmp_path / "a.nii.gz")
    assert json.loads((tmp_path / "a.json").read_text())["formats"] == ["nifti"]
