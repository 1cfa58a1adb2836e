"""The format dicom-seg: through `volseg predict`, from Python, and with codes that a dataset states."""

import json
import shutil

import nibabel
import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

import volseg
from tests.dicom.results import LABELS, series, some_labels
from tests.pipeline import tiny_plan, write_model
from volseg.api.outputs import find_format
from volseg.api.result import Result
from volseg.cli import app
from volseg.config import Channel, Label, LabelCode
from volseg.data.cases.dataset import open_dataset
from volseg.data.io.reading import read_scan
from volseg.errors import InputError, UsageError
from volseg.inference.quality import LabelQuality

AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])
PROSTATE = {"value": "41216001", "scheme": "SCT", "meaning": "Prostate"}


def result_of(folder, labels, **attributes) -> Result:
    """The result of a model that says these labels."""
    scan = read_scan(series(folder, shape=labels.shape, **attributes))
    measures = tuple(
        LabelQuality(one.name, one.value, int((labels == one.value).sum()), None, None, ()) for one in LABELS
    )
    return Result(labels, measures, (), scan, LABELS, {"model": {"name": "model", "sha256": "0" * 64}})


def predict(folder, output, model, *options):
    command = ["predict", folder, "--model", model, "--output", output, "--device", "cpu", *options]
    return CliRunner().invoke(app, [str(one) for one in command])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


def test_options_and_label_image_agree(tmp_path):
    labels = some_labels()
    result = result_of(tmp_path / "series", labels)
    found = {}
    for name in ("dicom-seg", "dicom-seg:labelmap", "dicom-seg:empty-frames", "dicom-seg:labelmap:empty-frames"):
        path = tmp_path / f"{len(found)}.seg.dcm"
        result.save(path, to=name)
        found[name] = pydicom.dcmread(path)
    counts = [one.NumberOfFrames for one in found.values()]
    assert counts == [5, 3, 8, 4]
    assert len({one.SOPInstanceUID for one in found.values()}) == 4
    assert {one.SegmentationType for one in found.values()} == {"BINARY", "LABELMAP"}


def test_an_unknown_option_is_refused():
    with pytest.raises(UsageError, match="no option 'labelmaps'; it has labelmap, empty-frames"):
        find_format("dicom-seg:labelmaps")


def test_two_formats_of_one_file_are_refused_before_any_work(tmp_path, model):
    found = predict(series(tmp_path / "series"), tmp_path / "out", model, "--to", "nifti,dicom-seg,dicom-seg:labelmap")
    assert found.exit_code == 2
    assert "dicom-seg and dicom-seg:labelmap write the same file, .seg.dcm" in found.stderr
    assert not (tmp_path / "out").exists()


def test_nothing_found_is_no_segmentation(tmp_path):
    result = result_of(tmp_path / "series", np.zeros((6, 5, 4), dtype=np.uint8))
    with pytest.raises(InputError, match="no label was found, and a DICOM Segmentation cannot be empty"):
        result.save(tmp_path / "a.seg.dcm", to="dicom-seg")
    assert not (tmp_path / "a.seg.dcm").exists()
    assert not (tmp_path / "a.json").exists()


def test_a_scan_that_is_no_dicom_has_no_segmentation(tmp_path, model):
    nibabel.save(
        nibabel.Nifti1Image(np.arange(1000, dtype=np.int16).reshape(10, 10, 10), AFFINE), tmp_path / "a.nii.gz"
    )
    found = predict(tmp_path / "a.nii.gz", tmp_path / "out", model, "--to", "nifti,dicom-seg")
    assert found.exit_code == 2
    assert "dicom-seg can be written for DICOM series alone" in found.stderr


def test_a_missing_frame_of_reference_is_said_in_the_log_and_the_record(tmp_path, model):
    folder = series(tmp_path / "series", shape=(20, 20, 20), FrameOfReferenceUID=None)
    found = predict(folder, tmp_path / "out", model, "--to", "nifti,dicom-seg")
    assert found.exit_code == 0, found.output
    (record,) = (tmp_path / "out").glob("*.json")
    assert "states no FrameOfReferenceUID" in json.loads(record.read_text())["warnings"][-1]
    assert "states no FrameOfReferenceUID" in found.stderr
    predict(folder, tmp_path / "plain", model)
    (record,) = (tmp_path / "plain").glob("*.json")
    assert "FrameOfReferenceUID" not in record.read_text()


def test_a_result_saved_from_python_says_it_as_well(tmp_path):
    result = result_of(tmp_path / "series", some_labels(), FrameOfReferenceUID=None)
    result.save(tmp_path / "a.seg.dcm", to="dicom-seg")
    assert "FrameOfReferenceUID" in json.loads((tmp_path / "a.json").read_text())["warnings"][0]


def test_the_label_image_and_the_segmentation_are_the_same_and_a_repeat_is_the_same_file(tmp_path, model):
    folder = series(tmp_path / "series", shape=(20, 20, 20))
    zipped = shutil.make_archive(str(tmp_path / "zipped"), "zip", folder)
    contents = []
    for at, source in enumerate((folder, folder, zipped)):
        out = tmp_path / f"out{at}"
        found = predict(source, out, model, "--to", "nifti,dicom-seg:labelmap:empty-frames")
        assert found.exit_code == 0, found.output
        (seg,), (image,) = out.glob("*.seg.dcm"), out.glob("*.nii.gz")
        contents.append(seg.read_bytes())
        data = pydicom.dcmread(seg)
        labels = np.asanyarray(nibabel.load(image).dataobj)
        assert np.array_equal(data.pixel_array.transpose(2, 1, 0), labels)
    assert contents[0] == contents[1] == contents[2]


def another_series(_, data):
    data.SeriesInstanceUID = "1.2.3.5"
    data.SOPInstanceUID += ".9"


def test_the_source_of_two_channels_is_the_first(tmp_path):
    network = tiny_plan().network.model_copy(update={"in_channels": 2})
    plan = tiny_plan(channels=(Channel(name="T1"), Channel(name="T2")), network=network)
    path = write_model(tmp_path / "two.safetensors", plan)
    first = series(tmp_path / "a", shape=(20, 20, 20))
    second = series(tmp_path / "b", shape=(20, 20, 20), change=another_series)
    files = {"T1": first, "T2": second}
    (done,) = volseg.predict(None, path, tmp_path / "out", channels=files, device="cpu", to="nifti,dicom-seg")
    assert done.error is None
    data = pydicom.dcmread(next((tmp_path / "out").glob("*.seg.dcm")))
    assert [one.SeriesInstanceUID for one in data.ReferencedSeriesSequence] == ["1.2.3.4"]
    assert {one.ReferencedSOPInstanceUID for one in data.SourceImageSequence} == {f"1.2.3.4.{k}" for k in range(1, 21)}


def test_codes_of_a_dataset_reach_the_plan_the_model_and_the_segmentation(tmp_path):
    code = LabelCode.model_validate(PROSTATE)
    names = (Label(name="ball", value=1, code=code), Label(name="rod", value=2))
    path = write_model(tmp_path / "coded.safetensors", tiny_plan(labels=names))
    info = CliRunner().invoke(app, ["info", str(path), "--json"])
    assert json.loads(info.stdout)["codes"] == "ball: Prostate (SCT 41216001)"
    folder = series(tmp_path / "series", shape=(20, 20, 20))
    found = predict(folder, tmp_path / "out", path, "--to", "nifti,dicom-seg")
    assert found.exit_code == 0, found.output
    first, second = pydicom.dcmread(next((tmp_path / "out").glob("*.seg.dcm"))).SegmentSequence
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeValue == "41216001"
    assert second.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "99VOLSEG"


def dataset(folder, **keys):
    """A Decathlon dataset of one case; its files are not read."""
    folder.mkdir()
    document = {"labels": {"0": "background", "1": "TZ"}, "training": [{"image": "a.nii.gz", "label": "b.nii.gz"}]}
    (folder / "dataset.json").write_text(json.dumps(document | keys))
    return folder


def test_codes_are_stated_beside_the_labels_of_a_dataset(tmp_path):
    found = open_dataset(dataset(tmp_path / "data", label_codes={"TZ": PROSTATE})).labels
    assert found.codes == {"TZ": LabelCode.model_validate(PROSTATE)}
    assert open_dataset(dataset(tmp_path / "other")).labels.codes == {}


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ([], "'label_codes' in .* is a list; expected a mapping"),
        ({"PZ": PROSTATE}, "names PZ, but the labels are TZ"),
        ({"TZ": {"value": "1"}}, "TZ.*scheme"),
        ({"TZ": PROSTATE | {"value": "1" * 17}}, "TZ.*value"),
    ],
)
def test_codes_that_are_none_are_refused(tmp_path, stated, message):
    with pytest.raises(InputError, match=message):
        open_dataset(dataset(tmp_path / "data", label_codes=stated))


def test_a_folder_of_series_gets_a_segmentation_each(tmp_path, model):
    series(tmp_path / "many" / "a", shape=(20, 20, 20))
    series(tmp_path / "many" / "b", shape=(20, 20, 20), change=another_series)
    found = predict(tmp_path / "many", tmp_path / "out", model, "--to", "nifti,dicom-seg")
    assert found.exit_code == 0, found.output
    objects = {one.name: pydicom.dcmread(one) for one in (tmp_path / "out").glob("*.seg.dcm")}
    assert sorted(objects) == ["a.seg.dcm", "b.seg.dcm"]
    assert len({one.SeriesInstanceUID for one in objects.values()}) == 2
