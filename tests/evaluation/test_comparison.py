"""Intervals, tests and rankings: on numbers worked out by hand, against scipy, and from files to page."""

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import stats

import volseg
from volseg.errors import InputError, UsageError
from volseg.evaluation.comparison import compare_reports, too_few_cases
from volseg.evaluation.statistics import bootstrap_intervals, holm, wilcoxon_p
from volseg.report.comparison_page import comparison_page


def test_a_bootstrap_interval_is_that_of_scipy():
    values = np.random.default_rng(0).normal(0.8, 0.1, size=(30, 2))
    found = bootstrap_intervals(values)
    for column, interval in zip(values.T, found, strict=True):
        expected = stats.bootstrap((column,), np.mean, method="percentile", rng=np.random.default_rng(1))
        assert interval == pytest.approx(tuple(expected.confidence_interval), abs=0.002)


def test_a_bootstrap_interval_leaves_out_what_is_missing():
    rows = np.array([[0.5, 0.5, np.nan], [0.7, np.nan, np.nan], [0.9, 0.9, 0.3]])
    whole, part, single = bootstrap_intervals(rows)
    assert whole == (pytest.approx(0.5), pytest.approx(0.9))
    assert part == (pytest.approx(0.5), pytest.approx(0.9))
    assert single is None
    assert bootstrap_intervals(np.full((4, 1), 0.7)) == [(pytest.approx(0.7), pytest.approx(0.7))]


def test_holms_correction_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_the_wilcoxon_test():
    # Ten differences of one sign: 2 of 2**10 ways to choose signs are as extreme.
    assert wilcoxon_p([0.1 * step for step in range(1, 11)]) == pytest.approx(2 / 2**10)
    assert wilcoxon_p([0.0, 0.0]) == 1.0


def report(scores: list[float | None], measure: str = "dice", labels: tuple[str, ...] = ("a",)) -> dict[str, object]:
    cases = [
        {"name": f"case{at}", "labels": {name: {measure: score} for name in labels}} for at, score in enumerate(scores)
    ]
    known = [score for score in scores if score is not None]
    return {"cases": cases, "mean": {"labels": {name: {measure: float(np.mean(known))} for name in labels}}}


def test_the_better_model_is_ranked_first_and_equal_ones_share_a_rank():
    base = np.linspace(0.6, 0.9, 12)
    noise = np.tile([0.001, -0.0011], 6)
    scores = {"poor": base - 0.05 - noise / 9, "good": base, "as good": base + noise}
    document = compare_reports({name: report(values.tolist()) for name, values in scores.items()})
    ranking = document["measures"]["dice"]["ranking"]
    assert [(row["model"], row["rank"]) for row in ranking] == [("good", 1), ("as good", 1), ("poor", 3)]
    assert ranking[0]["mean"] == pytest.approx(0.75)
    assert (ranking[0]["median"], ranking[0]["worst"]) == (pytest.approx(0.75), pytest.approx(0.6))
    assert ranking[0]["low"] < 0.75 < ranking[0]["high"]
    pairs = {(row["first"], row["second"]): row for row in document["measures"]["dice"]["pairs"]}
    assert pairs["poor", "good"]["winner"] == "good"
    assert pairs["poor", "good"]["difference"] == pytest.approx(-0.05, abs=1e-3)
    assert pairs["poor", "good"]["p_holm"] == pytest.approx(3 * 2 / 2**12)
    assert (pairs["poor", "good"]["better"], pairs["poor", "good"]["worse"]) == (0, 12)
    assert pairs["good", "as good"]["winner"] is None


def test_of_distances_less_is_better():
    near, far = np.linspace(1, 2, 10), np.linspace(3, 5, 10)
    document = compare_reports(
        {"far": report(far.tolist(), "hausdorff95_mm"), "near": report(near.tolist(), "hausdorff95_mm")}
    )
    found = document["measures"]["hausdorff95_mm"]
    assert [(row["model"], row["rank"], row["worst"]) for row in found["ranking"]] == [
        ("near", 1, 2.0),
        ("far", 2, 5.0),
    ]
    assert (found["pairs"][0]["winner"], found["pairs"][0]["better"]) == ("near", 0)


def test_a_case_without_a_label_is_left_out_of_both_sides():
    document = compare_reports({"one": report([0.5, None, 0.7]), "other": report([0.6, None, 0.9])})
    (pair,) = document["measures"]["dice"]["pairs"]
    assert (pair["cases"], pair["difference"]) == (2, pytest.approx(-0.15))
    assert document["measures"]["dice"]["cases"]["case1"] == {"one": None, "other": None}


def test_reports_of_other_cases_or_labels_are_refused():
    with pytest.raises(InputError, match="different cases: case2 only in one"):
        compare_reports({"one": report([0.5, 0.6]), "other": report([0.5, 0.6, 0.7])})
    with pytest.raises(InputError, match="different labels: b only in one"):
        compare_reports({"one": report([0.5]), "other": report([0.5], labels=("a", "b"))})


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """References, predictions shifted by a voxel, and by three."""
    rng = np.random.default_rng(0)
    for case in range(6):
        truth = np.zeros((20, 20, 20), np.uint8)
        edge = int(rng.integers(5, 9))
        truth[4 : 4 + edge, 4 : 4 + edge, 4 : 4 + edge] = 1
        for name, shift in (("true", 0), ("close", 1), ("off", 3)):
            (tmp_path / name).mkdir(exist_ok=True)
            header = nibabel.Nifti1Header()
            header.set_xyzt_units("mm")
            stored = nibabel.Nifti1Image(np.roll(truth, shift, axis=0), np.eye(4), header)
            nibabel.save(stored, tmp_path / name / f"case{case}.nii.gz")
    return {name: tmp_path / name for name in ("true", "close", "off")}


def test_models_are_compared_from_their_folders(folders, tmp_path):
    document = volseg.compare([folders["off"], folders["close"]], folders["true"], {"a <b>": 1}, tmp_path / "out")
    assert document["models"] == ["off", "close"]
    assert list(document["measures"]) == ["dice", "surface_dice", "hausdorff95_mm"]
    best = [found["ranking"][0]["model"] for found in document["measures"].values()]
    assert best == ["close"] * 3
    assert [row["mean"] for row in document["measures"]["hausdorff95_mm"]["ranking"]] == [1.0, 3.0]
    assert document["measures"]["dice"]["pairs"][0]["p"] == pytest.approx(2 / 2**6)
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == json.loads(json.dumps(document))
    rows = list(csv.DictReader((tmp_path / "out" / "comparison.csv").read_text().splitlines()))
    assert len(rows) == 12
    assert {float(row["hausdorff95_mm"]) for row in rows if row["model"] == "off"} == {3.0}
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "a &lt;b&gt;" in page
    assert "<b>" not in page
    assert page == comparison_page(document)


@pytest.mark.parametrize(("cases", "models", "smallest"), [(5, 2, "0.062"), (6, 3, "0.094"), (1, 2, "1")])
def test_too_few_cases_to_tell_models_apart_are_said(cases, models, smallest):
    scores = {
        str(model): report([0.1 * (model + 1) + 0.001 * case for case in range(cases)]) for model in range(models)
    }
    assert f"the smallest p is {smallest}, and 0.05 is needed" in too_few_cases(cases, models)
    for pair in compare_reports(scores)["measures"]["dice"]["pairs"]:
        assert pair["p_holm"] == pytest.approx(float(smallest), abs=6e-4)
        assert not pair["distinguishable"]


@pytest.mark.parametrize(("cases", "models"), [(6, 2), (7, 3), (200, 5)])
def test_enough_cases_are_not_spoken_of(cases, models):
    assert too_few_cases(cases, models) is None


def test_too_few_cases_are_said_in_log_document_and_page(folders, tmp_path, caplog):
    for name in folders:
        (folders[name] / "case5.nii.gz").unlink()
    document = volseg.compare([folders["off"], folders["close"]], folders["true"], {"a": 1}, tmp_path / "out")
    sentence = "2 models on 5 cases cannot be told apart, whatever their difference: the smallest p is 0.062"
    assert sentence in document["warnings"][-1]
    assert sentence in caplog.text
    assert sentence in (tmp_path / "out" / "comparison.html").read_text()


def test_the_names_of_models_are_told_apart_or_given(folders, tmp_path):
    same = tmp_path / "deep" / "close"
    same.parent.mkdir()
    same.symlink_to(folders["off"])
    found = volseg.compare([folders["close"], same], folders["true"], {"a": 1})
    assert found["models"] == [str(folders["close"]), str(same)]
    given = volseg.compare({"x": folders["close"], "y": same}, folders["true"], {"a": 1})
    assert given["models"] == ["x", "y"]
    for too_few in ([folders["close"]], [folders["close"], folders["close"]], folders["close"]):
        with pytest.raises(UsageError, match="at least two models"):
            volseg.compare(too_few, folders["true"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        volseg.compare([folders["close"], folders["off"]], folders["true"], output=tmp_path / "file")
