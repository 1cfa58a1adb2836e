"""Files that lie beside the label image of a result are taken neither for scans nor for label images."""

import shutil

import pytest

import volseg
from tests.dicom.results import series
from tests.pipeline import volseg as command
from tests.pipeline import write_model
from volseg.api import outputs
from volseg.api.outputs import add_format, find_format, format_names
from volseg.data.cases.dataset import open_dataset
from volseg.data.io import formats
from volseg.data.io.formats import image_suffix
from volseg.data.io.inputs import find_cases
from volseg.errors import InputError

BESIDE = {"a.uncertainty.nii.gz", "a.seg.dcm", "a.rtstruct.dcm", "a.sr.dcm", "a.sc.dcm"}


def own_formats() -> list[str]:
    """The formats of volseg, without those that other tests add."""
    return [name for name in format_names() if name not in outputs._added]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A series, and its result in every format."""
    folder = tmp_path_factory.mktemp("results")
    model = write_model(folder / "tiny.safetensors")
    [found] = volseg.predict(
        series(folder / "a"), model, folder / "out", to=own_formats(), probabilities=True, device="cpu"
    )
    assert found.error is None
    return folder / "out"


@pytest.fixture
def heat(monkeypatch):
    """A format of the caller's own that is an image."""
    monkeypatch.setattr(outputs, "_added", {})
    monkeypatch.setattr(formats, "RESULT_SUFFIXES", set(formats.RESULT_SUFFIXES))
    monkeypatch.setattr(outputs, "RESULT_SUFFIXES", formats.RESULT_SUFFIXES)
    add_format("heat", ".Heat.mha", lambda result, path: path.write_text("map"))


def test_every_format_that_could_be_taken_for_a_scan_is_known():
    found = {find_format(name).suffix for name in own_formats()} - {None}
    assert {one for one in found if image_suffix("a" + one) or one.endswith(".dcm")} == {one[1:] for one in BESIDE}
    assert {one[1:] for one in BESIDE} <= formats.RESULT_SUFFIXES


def test_a_folder_of_results_holds_one_scan_per_label_image(results, caplog):
    assert {path.name for path in results.iterdir()} >= BESIDE
    [case] = find_cases([results], ("scan",))
    assert case.paths == (results / "a.nii.gz",)
    assert "because they belong to results" in caplog.text
    assert all(name in caplog.text for name in BESIDE)


@pytest.mark.parametrize("name", sorted(BESIDE))
def test_each_alone_beside_the_label_image_is_passed_over(results, tmp_path, name):
    for file in ("a.nii.gz", name):
        shutil.copy(results / file, tmp_path)
    assert [case.name for case in find_cases([tmp_path], ("scan",))] == ["a"]
    report = volseg.evaluate(tmp_path, tmp_path)
    assert [case["name"] for case in report["cases"]] == ["a"]


@pytest.mark.parametrize("name", sorted(BESIDE))
def test_a_file_of_a_result_given_by_its_path_is_refused(results, name):
    with pytest.raises(InputError, match=r"belongs to the result a beside it and is no scan"):
        find_cases([results / "a.nii.gz", results / name], ("scan",))


def test_folders_of_results_are_evaluated_and_compared(results, tmp_path):
    other = shutil.copytree(results, tmp_path / "other")
    report = volseg.evaluate(results, other)
    assert [case["name"] for case in report["cases"]] == ["a"]
    compared = volseg.compare({"one": results, "two": other}, results)
    *warnings, too_few = compared["warnings"]
    assert warnings == report["warnings"]
    assert "2 models on 1 case cannot be told apart" in too_few


def test_a_map_is_no_label_image_but_can_be_converted(results, tmp_path):
    map_file = results / "a.uncertainty.nii.gz"
    with pytest.raises(InputError, match="label values must be integers"):
        volseg.evaluate(map_file, results / "a.nii.gz")
    volseg.convert(map_file, tmp_path / "map.nrrd")
    assert (tmp_path / "map.nrrd").exists()


def test_a_folder_of_results_is_no_scan_to_convert(results, tmp_path):
    done = command("convert", results, "--output", tmp_path / "x.nii.gz")
    assert done.returncode == 2
    assert "2 segmentations or structure sets" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", ["plain", "nnunet"])
def test_results_as_labels_of_a_dataset(results, tmp_path, layout):
    images, labels = ("images", "labels") if layout == "plain" else ("imagesTr", "labelsTr")
    shutil.copytree(results, tmp_path / labels)
    (tmp_path / images).mkdir()
    shutil.copy(results / "a.nii.gz", tmp_path / images / ("a.nii.gz" if layout == "plain" else "a_0000.nii.gz"))
    if layout == "nnunet":
        text = '{"channel_names": {"0": "CT"}, "labels": {"background": 0, "ball": 1}, "file_ending": ".nii.gz"}'
        (tmp_path / "dataset.json").write_text(text)
    dataset = open_dataset(tmp_path)
    assert [(case.name, case.label.name) for case in dataset.cases] == [("a", "a.nii.gz")]
    assert dataset.problems == ()


def test_an_image_format_of_the_callers_own(results, tmp_path, heat):
    shutil.copy(results / "a.nii.gz", tmp_path)
    (tmp_path / "a.heat.mha").write_text("map")
    assert [case.name for case in find_cases([tmp_path], ("scan",))] == ["a"]
    assert [case["name"] for case in volseg.evaluate(tmp_path, tmp_path)["cases"]] == ["a"]


def test_a_file_of_that_name_without_a_label_image_is_a_scan(results, tmp_path):
    shutil.copy(results / "a.nii.gz", tmp_path / "b.uncertainty.nii.gz")
    shutil.copy(results / "a.nii.gz", tmp_path / "c.nii.gz")
    assert [case.name for case in find_cases([tmp_path], ("scan",))] == ["b.uncertainty", "c"]
