"""Custom metrics: what they are called with, where their values go, and what is rejected."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from volseg.api.evaluation import evaluate
from volseg.errors import UsageError
from volseg.evaluation.custom_metrics import RESERVED, metric_values
from volseg.evaluation.label_distances import DISTANCES
from volseg.evaluation.overlap import MEASURES

SPACING_MM = (1.0, 2.0, 5.0)


def missed_mm3(prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float]) -> float:
    """Volume of the reference that the prediction misses."""
    return float(np.count_nonzero(reference & ~prediction) * np.prod(spacing_mm))


def length_ratio(prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float]) -> float | None:
    """Length along I, prediction to reference; undefined without a reference."""
    lengths = [mask.any(axis=(1, 2)).sum() * spacing_mm[0] for mask in (prediction, reference)]
    return lengths[0] / lengths[1] if lengths[1] else None


TOY = {"missed_mm3": missed_mm3, "length_ratio": length_ratio}


def rod(value: int, length: int) -> np.ndarray:
    labels = np.zeros((4, 3, 2), dtype=np.uint8)
    labels[:length, 0, 0] = value
    return labels


def save(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(labels, np.diag([*SPACING_MM, 1.0])), path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two cases. Voxels of label 1: 4 in the reference and 1 in the prediction, then 3 in both; of label 2: 2 in the
    second prediction only.
    """
    save(tmp_path / "references" / "one.nii.gz", rod(1, 4))
    save(tmp_path / "predictions" / "one.nii.gz", rod(1, 1))
    save(tmp_path / "references" / "two.nii.gz", rod(1, 3))
    second = rod(1, 3)
    second[:2, 1, 1] = 2
    save(tmp_path / "predictions" / "two.nii.gz", second)
    return tmp_path / "predictions", tmp_path / "references"


def test_values_means_and_standard_deviations_by_hand(folders: tuple[Path, Path], tmp_path: Path) -> None:
    labels = {"a": 1, "b": 2, "c": 3}
    document = evaluate(*folders, labels, tmp_path / "report.json", metrics=TOY)
    one, two = (case["labels"] for case in document["cases"])
    # A voxel has 10 cubic millimetres; 3 of 4 are missed.
    assert (one["a"]["missed_mm3"], one["a"]["length_ratio"]) == (30.0, 0.25)
    assert (two["a"]["missed_mm3"], two["a"]["length_ratio"]) == (0.0, 1.0)
    assert (one["b"]["missed_mm3"], one["b"]["length_ratio"]) == (None, None)
    assert (two["b"]["missed_mm3"], two["b"]["length_ratio"]) == (0.0, None)
    mean, spread = document["mean"]["labels"], document["spread"]["labels"]
    assert (mean["a"]["missed_mm3"], mean["a"]["length_ratio"], mean["a"]["cases"]) == (15.0, 0.625, 2)
    assert spread["a"]["missed_mm3"] == pytest.approx(np.sqrt(2 * 15.0**2))
    # "b" counts in one case, where one of the two metrics is undefined; "c" counts in none.
    assert (mean["b"]["missed_mm3"], mean["b"]["length_ratio"], mean["b"]["cases"]) == (0.0, None, 1)
    assert (mean["c"]["missed_mm3"], mean["c"]["cases"], spread["b"]["missed_mm3"]) == (None, 0, None)
    assert json.loads((tmp_path / "report.json").read_text()) == document
    table = (tmp_path / "report.csv").read_text().splitlines()
    assert table[0] == ",".join(["case", "label", *MEASURES, *DISTANCES, "missed_mm3", "length_ratio"])
    assert table[1].startswith("one,a,0.4,")
    assert [line.split(",")[-2:] for line in table[1:3]] == [["30.0", "0.25"], ["", ""]]


@pytest.mark.parametrize("labels", [None, {"a": 1, "b": 2, "c": 3}])
def test_the_built_in_measures_do_not_change(folders: tuple[Path, Path], labels: dict[str, int] | None) -> None:
    document = evaluate(*folders, labels, metrics=TOY)
    rows = [
        row for part in ("mean", "spread", "found", "median", "interval") for row in document[part]["labels"].values()
    ]
    rows += [row for case in document["cases"] for row in case["labels"].values()]
    assert all([row.pop(name, "absent") != "absent" for name in TOY] == [True, True] for row in rows)
    assert document == evaluate(*folders, labels)


def test_masks_are_boolean_without_ignored_voxels_and_regions_are_unions() -> None:
    prediction, reference = rod(1, 4), rod(2, 4)
    prediction[2, 0, 0], reference[3, 0, 0] = 2, 9
    calls = []

    def noted(predicted: np.ndarray, true: np.ndarray, spacing_mm: tuple[float, float, float]) -> float:
        assert predicted.dtype == true.dtype == bool
        assert predicted.shape == true.shape == (4, 3, 2)
        assert not predicted[:, 1:].any()
        assert not true[:, :, 1:].any()
        calls.append((predicted[:, 0, 0].tolist(), true[:, 0, 0].tolist(), spacing_mm))
        return np.float32(len(calls))

    values = {"whole": (1, 2), "core": 2, "none": 7}
    rows = metric_values({"noted": noted}, prediction, reference, values, SPACING_MM, "case", ignore=9)
    assert calls == [
        ([True, True, True, False], [True, True, True, False], SPACING_MM),
        ([False, False, True, False], [True, True, True, False], SPACING_MM),
    ]
    assert rows == {"whole": {"noted": 1.0}, "core": {"noted": 2.0}, "none": {"noted": None}}
    assert type(rows["whole"]["noted"]) is float


@pytest.mark.parametrize("name", ["dice", "volume_difference_ml", "cases", "label"])
def test_names_that_a_report_uses_are_rejected_before_any_file_is_read(tmp_path: Path, name: str) -> None:
    for folder in ("predictions", "references"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "one.nii.gz").write_bytes(b"not an image")
    with pytest.raises(UsageError) as error:
        evaluate(tmp_path / "predictions", tmp_path / "references", metrics={"mine": missed_mm3, name: missed_mm3})
    assert str(error.value) == (
        f"A custom metric is named '{name}', which a report already uses; choose a name other than "
        f"{', '.join(RESERVED)}."
    )


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (float("nan"), "nan"),
        (np.float64("-inf"), "-inf"),
        (True, "a value of type bool"),
        ("0.5", "a value of type str"),
        (np.ones(2), "a value of type ndarray"),
    ],
)
def test_other_values_than_finite_numbers_are_rejected(folders: tuple[Path, Path], value: object, found: str) -> None:
    with pytest.raises(UsageError) as error:
        evaluate(*folders, metrics={"mine": lambda *_: value})
    assert str(error.value) == (
        f"Metric 'mine' returned {found} for label 'label_1' of case 'one', expected a finite number or None."
    )


def test_an_error_of_a_metric_is_not_hidden(folders: tuple[Path, Path]) -> None:
    with pytest.raises(ZeroDivisionError):
        evaluate(*folders, metrics={"mine": lambda *_: 1 / 0})
