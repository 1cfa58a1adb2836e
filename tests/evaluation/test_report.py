"""Means and standard deviations worked out by hand, the written files, and label images from disk to report."""

import json
import math
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from volseg.api.evaluation import evaluate
from volseg.data.cases.sources.case_labels import CaseLabels
from volseg.data.io import reading
from volseg.data.io.readers.stored import Stored
from volseg.errors import GridError, InputError, UsageError
from volseg.evaluation.overlap import ABSENT, MEASURES, POLICY, Overlap
from volseg.evaluation.pairs import Pair, Pairs, match_pairs
from volseg.evaluation.report import as_measures, evaluate_pairs, summarise, write_report


def overlap(dice: float, prediction_ml: float = 1.0) -> Overlap:
    return Overlap(dice, dice / (2 - dice), dice, dice, 1.0, prediction_ml, prediction_ml - 1.0)


CASES = {
    "one": as_measures({"a": overlap(0.9), "b": overlap(0.5), "never": ABSENT}),
    "two": as_measures({"a": overlap(0.7, 2.0), "b": ABSENT, "never": ABSENT}),
    "three": as_measures({"a": overlap(0.2, 3.0), "b": ABSENT, "never": ABSENT}),
}


def test_means_and_standard_deviations_by_hand() -> None:
    document = summarise(CASES, ("four",))
    mean, spread = document["mean"]["labels"], document["spread"]["labels"]
    assert mean["a"]["dice"] == pytest.approx(0.6)
    assert mean["a"]["iou"] == pytest.approx((0.9 / 1.1 + 0.7 / 1.3 + 0.2 / 1.8) / 3)
    assert (mean["a"]["prediction_ml"], mean["a"]["volume_difference_ml"], mean["a"]["cases"]) == (2.0, 1.0, 3)
    assert spread["a"]["dice"] == pytest.approx(math.sqrt((0.3**2 + 0.1**2 + 0.4**2) / 2))
    assert spread["a"]["prediction_ml"] == 1.0
    # Present in one case only: that case is the mean, and one case has no standard deviation.
    assert (mean["b"]["dice"], mean["b"]["reference_ml"], mean["b"]["cases"]) == (0.5, 1.0, 1)
    assert mean["never"] == {**dict.fromkeys(MEASURES), "cases": 0}
    assert spread["b"] == spread["never"] == dict.fromkeys(MEASURES)
    # Over cases per label, then over labels: not the mean of all four numbers, and 'never' does not count.
    assert document["mean"]["foreground_dice"] == pytest.approx((0.6 + 0.5) / 2)
    assert document["unmatched_references"] == ["four"]
    assert document["policy"] == POLICY


def test_cases_are_given_in_full() -> None:
    document = summarise(CASES)
    assert [case["name"] for case in document["cases"]] == ["one", "two", "three"]
    assert document["cases"][1]["labels"]["b"] == {
        **dict.fromkeys(("dice", "iou", "precision", "recall")),
        "reference_ml": 0.0,
        "prediction_ml": 0.0,
        "volume_difference_ml": 0.0,
    }
    assert document["cases"][1]["labels"]["a"]["dice"] == 0.7


@pytest.mark.parametrize("cases", [{}, {"one": {}}, {"one": {"a": ABSENT}}])
def test_nothing_that_counts(cases: dict[str, dict[str, Overlap]]) -> None:
    rows = {case: as_measures(overlaps) for case, overlaps in cases.items()}
    assert summarise(rows)["mean"]["foreground_dice"] is None


def test_written_files(tmp_path: Path) -> None:
    cases = {"one, first": {"a": Overlap(0.5, 0.25, 1.0, 0.0, 2.0, 3.0, 1.0)}, "two": {"a": ABSENT}}
    document = summarise({case: as_measures(overlaps) for case, overlaps in cases.items()})
    write_report(document, tmp_path / "out" / "report.json")
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == document
    assert (tmp_path / "out" / "report.csv").read_text() == (
        "case,label,dice,iou,precision,recall,reference_ml,prediction_ml,volume_difference_ml\n"
        '"one, first",a,0.5,0.25,1.0,0.0,2.0,3.0,1.0\n'
        "two,a,,,,,0.0,0.0,0.0\n"
    )


@pytest.mark.parametrize("name", ["report", "report.csv"])
def test_the_report_is_json(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"ending in \.json"):
        write_report(summarise({}), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def save_nifti(path: Path, labels: np.ndarray, spacing_mm: tuple[float, float, float] = (1.0, 2.0, 5.0)) -> None:
    path.parent.mkdir(exist_ok=True)
    image = nibabel.Nifti1Image(labels.astype(np.uint8), np.diag([*spacing_mm, 1.0]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def box(value: int, length: int) -> np.ndarray:
    labels = np.zeros((4, 3, 2), dtype=np.uint8)
    labels[:length, 0, 0] = value
    return labels


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three references; predictions for two of them, one exact."""
    for name, labels in {"a": box(1, 4), "b": box(10, 2), "c": box(1, 1)}.items():
        save_nifti(tmp_path / "references" / f"{name}.nii.gz", labels)
    save_nifti(tmp_path / "predictions" / "a.nii.gz", box(1, 2))
    save_nifti(tmp_path / "predictions" / "b.nii.gz", box(10, 2) + box(2, 4) * (box(10, 2) == 0))
    return tmp_path / "predictions", tmp_path / "references"


@pytest.mark.parametrize("workers", [1, 2])
def test_folders_with_given_labels(folders: tuple[Path, Path], workers: int) -> None:
    document = evaluate_pairs(match_pairs(*folders), {"ten": 10, "one": 1}, workers)
    first, second = document["cases"]
    assert (first["name"], first["labels"]["ten"]["dice"]) == ("a", None)
    assert first["labels"]["one"] == {
        "dice": pytest.approx(4 / 6),
        "iou": 0.5,
        "precision": 1.0,
        "recall": 0.5,
        "reference_ml": pytest.approx(0.04),
        "prediction_ml": pytest.approx(0.02),
        "volume_difference_ml": pytest.approx(-0.02),
    }
    assert (second["labels"]["ten"]["dice"], second["labels"]["one"]["dice"]) == (1.0, None)
    assert document["mean"]["foreground_dice"] == pytest.approx((1.0 + 4 / 6) / 2)
    assert document["unmatched_references"] == ["c"]


def test_an_image_without_a_stated_size_has_no_volumes(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = reading.read_stored
    warning, reason = "The header has no spatial unit; millimetres are assumed.", "the header has no spatial unit"

    def unstated(path: Path, *choice: object) -> Stored:
        stored = read(path, *choice)
        # One of the two images is enough.
        is_unsized = path == folders[0] / "a.nii.gz"
        return stored._replace(unstated=reason, warnings=[warning]) if is_unsized else stored

    monkeypatch.setattr(reading, "read_stored", unstated)
    document = evaluate_pairs(match_pairs(*folders), {"ten": 10, "one": 1, "never": 7})
    volumes = ("reference_ml", "prediction_ml", "volume_difference_ml")
    first, second = (case["labels"] for case in document["cases"])
    assert {first[label][volume] for label in first for volume in volumes} == {None}
    assert second["ten"]["reference_ml"] == pytest.approx(0.02)
    assert document["mean"]["labels"]["one"] == {**first["one"], "cases": 1, "missed": 0, "unexpected": 0}
    assert first["one"]["dice"] == pytest.approx(4 / 6)
    assert f"{warning} (1 of 2 cases: a)" in document["warnings"]


UNNAMED = "Values in predictions without a label name count as background: 2 (cases: b). Are these the right labels?"


def test_values_without_a_label_are_warned_of_and_scores_stay(folders: tuple[Path, Path]) -> None:
    pairs = match_pairs(*folders)
    assert evaluate_pairs(pairs, {"ten": 10, "one": 1})["warnings"] == [UNNAMED]
    assert evaluate_pairs(pairs, {"all": (1, 2, 10)})["warnings"] == []
    assert evaluate_pairs(pairs, {"ten": 10, "one": 1}, ignore=2)["warnings"] == []
    assert evaluate_pairs(pairs)["warnings"] == []


def test_labels_of_other_images_are_warned_of(folders: tuple[Path, Path]) -> None:
    document = evaluate_pairs(match_pairs(*folders), {"Liver": 3, "Tumour": (4, 5)})
    assert document["warnings"] == [
        "Values in predictions without a label name count as background: 1, 2, 10 (cases: a, b). "
        "Are these the right labels?",
        "Values in references without a label name count as background: 1, 10 (cases: a, b). "
        "Are these the right labels?",
        "Labels that occur in no image: Liver, Tumour. Are these the right labels?",
    ]
    assert document["mean"]["foreground_dice"] is None


def test_warnings_about_the_labels_are_logged_and_written(
    folders: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    document = evaluate(*folders, labels={"ten": 10, "one": 1}, output=tmp_path / "report.json")
    assert [record.getMessage() for record in caplog.records if record.name == "volseg.api.evaluation"] == [UNNAMED]
    assert json.loads((tmp_path / "report.json").read_text())["warnings"] == document["warnings"] == [UNNAMED]


def test_labels_are_found_in_either_image_and_sorted_by_value(folders: tuple[Path, Path]) -> None:
    document = evaluate_pairs(match_pairs(*folders))
    assert [list(case["labels"]) for case in document["cases"]] == [["label_1", "label_2", "label_10"]] * 2
    means = {name: mean["dice"] for name, mean in document["mean"]["labels"].items()}
    assert means == {"label_1": pytest.approx(4 / 6), "label_2": 0.0, "label_10": 1.0}
    assert [case["labels"]["label_2"]["dice"] for case in document["cases"]] == [None, 0.0]


def test_formats_may_differ(tmp_path: Path) -> None:
    labels = box(3, 3)
    save_nifti(tmp_path / "references" / "a.nii.gz", labels)
    image = SimpleITK.GetImageFromArray(labels.T)
    image.SetSpacing((1.0, 2.0, 5.0))
    # The same RAS+ axes, in LPS+ coordinates.
    image.SetDirection((-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0))
    (tmp_path / "predictions").mkdir()
    SimpleITK.WriteImage(image, str(tmp_path / "predictions" / "a.mha"))
    document = evaluate_pairs(match_pairs(tmp_path / "predictions", tmp_path / "references"))
    assert document["mean"]["foreground_dice"] == 1.0
    assert document["mean"]["labels"]["label_3"]["reference_ml"] == pytest.approx(0.03)


def test_other_grid_and_unreadable_file(tmp_path: Path) -> None:
    save_nifti(tmp_path / "r" / "case_7.nii.gz", box(1, 2))
    save_nifti(tmp_path / "p" / "case_7.nii.gz", box(1, 2), spacing_mm=(1.0, 2.0, 4.0))
    with pytest.raises(GridError, match="case_7"):
        evaluate_pairs(match_pairs(tmp_path / "p", tmp_path / "r"))
    (tmp_path / "p" / "case_7.nii.gz").write_bytes(b"not an image")
    with pytest.raises(InputError, match="case_7"):
        evaluate_pairs(match_pairs(tmp_path / "p", tmp_path / "r"))


@pytest.mark.needs_data
def test_real_references_against_themselves(data_folder: Path) -> None:
    files = sorted((data_folder / "Task04_Hippocampus" / "labelsTr").glob("*.nii.gz"))[:3]
    pairs = Pairs(tuple(Pair(file.name, file, file) for file in files))
    document = evaluate_pairs(pairs, {"Anterior": 1, "Posterior": 2})
    assert document["mean"]["foreground_dice"] == 1.0
    assert all(0.5 < document["mean"]["labels"][name]["reference_ml"] < 4.0 for name in ("Anterior", "Posterior"))


def test_labels_are_in_the_order_that_was_given_also_those_that_never_occur(tmp_path: Path) -> None:
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[1], labels[2] = 1, 2
    for name in ("p", "r"):
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), tmp_path / f"{name}.nii.gz")
    pairs = Pairs((Pair("case", tmp_path / "p.nii.gz", tmp_path / "r.nii.gz"),))
    document = evaluate_pairs(pairs, {"never": 9, "second": 2, "first": 1})
    assert list(document["mean"]["labels"]) == ["never", "second", "first"]
    assert list(document["cases"][0]["labels"]) == ["never", "second", "first"]
    assert document["mean"]["labels"]["never"]["dice"] is None
    # Without names, by value.
    assert list(evaluate_pairs(pairs)["mean"]["labels"]) == ["label_1", "label_2"]


def test_a_label_that_nobody_looked_for_in_a_reference_is_null_and_left_out_of_means(tmp_path: Path) -> None:
    affine, pairs = np.diag([1.0, 1.0, 2.0, 1.0]), []
    images = {"one": ([0, 1, 2], [0, 1, 2]), "two": ([1, 1, 2], [0, 1, 0])}
    for name, (predicted, true) in images.items():
        paths = [tmp_path / f"{kind}_{name}.nii" for kind in ("prediction", "reference")]
        for path, values in zip(paths, (predicted, true), strict=True):
            image = nibabel.Nifti1Image(np.array(values, np.uint8).reshape(1, 1, 3), affine)
            image.header.set_xyzt_units("mm")
            nibabel.save(image, path)
        pairs.append(Pair(name, *paths, CaseLabels(("a",)) if name == "two" else CaseLabels()))
    document = evaluate_pairs(Pairs(tuple(pairs)), {"a": 1, "b": 2})
    first, second = document["cases"]
    assert "not_annotated" not in first
    assert second["not_annotated"] == ["b"]
    assert set(second["labels"]["b"].values()) == {None}
    assert second["labels"]["a"]["dice"] == pytest.approx(2 / 3)
    mean = document["mean"]["labels"]
    assert (mean["b"]["dice"], mean["b"]["cases"], mean["a"]["cases"]) == (1.0, 1, 2)
    assert document["mean"]["foreground_dice"] == pytest.approx((5 / 6 + 1) / 2)
    assert (mean["b"]["missed"], mean["b"]["unexpected"]) == (0, 0)
    # Not a sign of wrong labels where nobody looked for it in any case.
    assert evaluate_pairs(Pairs(tuple(pairs[1:])), {"a": 1, "b": 2})["warnings"] == []
