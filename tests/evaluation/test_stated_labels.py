"""What files beside the images say of their labels: which are annotated, and which values a prediction has."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from volseg import Segmenter, compare, evaluate
from volseg.errors import InputError

LABELS = {"liver": 1, "spleen": 2}


def save(path: Path, values: dict[int, int]) -> None:
    """Cubes along a row, by their value: where each begins."""
    image = np.zeros((20, 8, 8), np.uint8)
    for value, start in values.items():
        image[start : start + 4, 2:6, 2:6] = value
    header = nibabel.Nifti1Header()
    header.set_xyzt_units("mm")
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4), header), path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two cases, both predicted with both labels; in the second nobody drew the spleen."""
    for name in ("a", "b"):
        save(tmp_path / "predicted" / f"{name}.nii.gz", {1: 2, 2: 11})
    save(tmp_path / "true" / "a.nii.gz", {1: 2, 2: 12})
    save(tmp_path / "true" / "b.nii.gz", {1: 2})
    return tmp_path / "predicted", tmp_path / "true"


STATED = {
    "mapping": {"labels": LABELS, "annotated": {"b": ["liver"]}},
    "of a case that is not compared": {"labels": LABELS, "annotated": {"b": ["liver"], "c": ["spleen"]}},
    "entries": {
        "labels": {"0": "background", "1": "liver", "2": "spleen"},
        "training": [{"image": "a.nii.gz", "label": "a.nii.gz"},
                     {"image": "b.nii.gz", "label": "b.nii.gz", "annotated": ["liver"]}],
    },
}  # fmt: skip


@pytest.mark.parametrize("form", STATED)
@pytest.mark.parametrize("as_file", [True, False])
def test_what_is_not_annotated_is_left_out_of_the_scores(folders, tmp_path, form, as_file):
    labels: object = STATED[form]
    if as_file:
        (tmp_path / "dataset.json").write_text(json.dumps(labels))
        labels = tmp_path / "dataset.json"
    document = evaluate(*folders, labels)
    first, second = document["cases"]
    assert set(second["labels"]["spleen"].values()) == {None}
    assert second["not_annotated"] == ["spleen"]
    assert document["mean"]["labels"]["spleen"]["dice"] == first["labels"]["spleen"]["dice"] == pytest.approx(0.75)
    assert document["mean"]["labels"]["spleen"] | {"cases": 1, "missed": 0, "unexpected": 0} == {
        **first["labels"]["spleen"], "cases": 1, "missed": 0, "unexpected": 0,
    }  # fmt: skip
    assert document["mean"]["labels"]["liver"]["cases"] == 2
    assert compare({"x": folders[0], "y": folders[0]}, folders[1], labels)["measures"]["dice"]["cases"]["b"]["x"] == 1


def test_a_list_of_annotated_labels_is_of_all_cases(folders):
    save(folders[1] / "a.nii.gz", {1: 2})
    document = evaluate(*folders, {"labels": LABELS, "annotated": ["liver"]})
    assert document["mean"]["labels"]["spleen"]["cases"] == 0
    assert document["mean"]["foreground_dice"] == 1
    save(folders[1] / "a.nii.gz", {1: 2, 2: 11})
    with pytest.raises(InputError, match="has 64 voxels of spleen, which is not among the annotated labels"):
        evaluate(*folders, {"labels": LABELS, "annotated": ["liver"]})


def record(path: Path, values: dict[str, object]) -> None:
    path.write_text(json.dumps({"labels": {name: {"value": value, "voxels": 64} for name, value in values.items()}}))


def test_the_labels_of_a_record_are_matched_by_name(folders):
    predicted, true = folders
    expected = evaluate(predicted, true, LABELS)
    # The same labels with the values of another model, which also has a label that is not asked for.
    for name in ("a", "b"):
        save(predicted / f"{name}.nii.gz", {3: 2, 1: 11, 2: 16})
        record(predicted / f"{name}.json", {"spleen": 1, "kidney": 2, "liver": 3})
    document = evaluate(predicted, true, LABELS)
    assert document["cases"] == expected["cases"]
    matched, unnamed = document["warnings"]
    assert "liver 3 and spleen 1" in matched or "spleen 1 and liver 3" in matched or "spleen 1, liver 3" in matched
    assert "matched by name" in matched
    assert "Values in predictions without a label name" in unnamed
    # Without names to match there is nothing to match by.
    assert evaluate(predicted, true)["mean"]["foreground_dice"] != expected["mean"]["foreground_dice"]


@pytest.mark.parametrize("text", ["", "[1]", '{"labels": [1]}', '{"labels": {"liver": 3}}', '{"labels": {"liver": {}}}',
                                  '{"labels": {"liver": {"value": "x"}}}', '{"labels": {"liver": {"value": 70000}}}',
                                  '{"labels": {"liver": {"value": 1}, "spleen": {"value": 2}}}'])  # fmt: skip
def test_other_files_beside_a_prediction_say_nothing(folders, text):
    expected = evaluate(*folders, LABELS)
    (folders[0] / "a.json").write_text(text)
    assert evaluate(*folders, LABELS) == expected


def test_the_record_of_a_prediction_states_its_values(folders, tmp_path):
    segmenter = Segmenter.load("hippocampus", device="cpu")
    save(tmp_path / "scans" / "a.nii.gz", {1: 2})
    record_of_result = segmenter(tmp_path / "scans" / "a.nii.gz").record
    assert {name: one["value"] for name, one in record_of_result["labels"].items()} == {"Anterior": 1, "Posterior": 2}
