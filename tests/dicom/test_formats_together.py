"""Several formats of one result: written together or not at all, without files of an earlier result beside them."""

import hashlib
import json

import pydicom
import pytest

import volseg
from tests.dicom.results import series
from tests.dicom.whole_results import result_of
from tests.pipeline import write_model
from volseg.api.outputs import add_format, find_formats
from volseg.errors import UsageError, VolsegError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Segment one series into a folder of its own for each test."""
    folder = tmp_path_factory.mktemp("together")
    scan, model = series(folder / "series"), volseg.Segmenter.load(write_model(folder / "m.safetensors"), device="cpu")

    def predict(output, to, **options):
        [outcome] = volseg.predict(scan, model, output, to=to, **options)
        return outcome

    return predict


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_format_that_fails_leaves_the_earlier_result_as_it_was(run, tmp_path):
    def fail(result, path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    add_format("full-disk", ".full", fail)
    assert run(tmp_path, ["rtstruct", "dicom-sr"]).error is None
    before = contents(tmp_path)
    failed = run(tmp_path, ["rtstruct:xor", "dicom-sr", "full-disk"], overwrite=True)
    assert isinstance(failed.error, VolsegError)
    assert f"The output format of {tmp_path / 'series.full'} failed" in str(failed.error)
    assert contents(tmp_path) == before


def test_overwriting_removes_the_files_of_formats_that_are_not_asked_for_again(run, tmp_path):
    run(tmp_path, "preview,rtstruct,dicom-sr", probabilities=True)
    (tmp_path / "series.txt").write_text("mine")
    record = run(tmp_path, "rtstruct:xor", overwrite=True).record
    assert record["formats"] == ["nifti", "rtstruct:xor"]
    assert sorted(contents(tmp_path)) == ["series.json", "series.nii.gz", "series.rtstruct.dcm", "series.txt"]


def test_a_result_with_other_options_does_not_count_as_there(run, tmp_path):
    run(tmp_path, "rtstruct")
    with pytest.raises(ValueError, match="not enough values"):
        run(tmp_path, "rtstruct", skip_existing=True)
    assert run(tmp_path, "rtstruct:xor", skip_existing=True).record["formats"] == ["nifti", "rtstruct:xor"]


def test_the_report_is_about_the_segmentation_that_is_written_with_it(tmp_path):
    assert [one.asked for one in find_formats("dicom-sr, dicom-seg : labelmap")] == [
        "dicom-sr:labelmap", "dicom-seg:labelmap"
    ]  # fmt: skip
    assert [one.asked for one in find_formats("dicom-seg:labelmap,dicom-sr:empty-frames")][1] == "dicom-sr:empty-frames"
    result_of(tmp_path / "series").save(tmp_path / "x.nii.gz", to="nifti,dicom-seg:labelmap,dicom-sr")
    made, report = (pydicom.dcmread(tmp_path / f"x.{kind}.dcm") for kind in ("seg", "sr"))
    named = {
        one.ReferencedSOPInstanceUID
        for group in report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
        for one in group.ReferencedSOPSequence
    }
    assert made.SOPInstanceUID in named
    assert json.loads((tmp_path / "x.json").read_text())["formats"] == [
        "nifti", "dicom-seg:labelmap", "dicom-sr:labelmap"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "to", "message"),
    [
        ("x.nii.gz", "dicom-seg", "x.nii.gz is no name for dicom-seg. Give one that ends in .seg.dcm"),
        ("x.json", "dicom-seg", "x.json is no name for dicom-seg"),
        ("x.seg.dcm", "nifti", "x.seg.dcm is no name for a label image"),
        ("x.seg.dcm", "nifti,dicom-seg", "x.seg.dcm is no name for a label image"),
        ("", "dicom-seg", "An empty path was given"),
        ("x.nii.gz", "", "No output format is named"),
        ("series/1.dcm", "dicom-seg", "would lie in the DICOM series"),
    ],
)
def test_names_that_mean_another_file_are_refused(tmp_path, monkeypatch, name, to, message):
    monkeypatch.chdir(tmp_path)
    result = result_of(tmp_path / "series")
    with pytest.raises(UsageError, match=message):
        result.save(name, to=to)
    assert [path.name for path in tmp_path.iterdir()] == ["series"]


def test_a_name_that_would_be_that_of_the_record_is_refused(tmp_path):
    add_format("my-json", ".results.json", lambda result, path: path.write_text("{}"))
    with pytest.raises(UsageError, match=r"x.json is the name of the record"):
        result_of(tmp_path / "series").save(tmp_path / "x.json", to="my-json")
    assert [path.name for path in tmp_path.iterdir()] == ["series"]
