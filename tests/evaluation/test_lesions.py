"""Lesions matched by each rule, on cases worked out by hand."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from volseg import evaluate
from volseg.errors import GridError, UsageError
from volseg.evaluation.lesions import LESIONS, RULES, Lesion, recall_by_volume
from volseg.metrics import dice, match_lesions, surface_distances

UNIT = (1.0, 1.0, 1.0)


def image(*boxes: tuple[int, int]) -> np.ndarray:
    """Cubes along the diagonal of an image, each from its first voxel, with its edge."""
    mask = np.zeros((60, 60, 60), bool)
    for first, edge in boxes:
        mask[first : first + edge, first : first + edge, first : first + edge] = True
    return mask


# A large lesion that is found, a small one that is missed, a lesion that is not there.
REFERENCE, PREDICTION = image((4, 8), (30, 5)), image((6, 8), (50, 4))


@pytest.mark.parametrize("rule", RULES)
def test_what_is_found_missed_and_false(rule):
    found = match_lesions(PREDICTION, REFERENCE, (1.0, 1.0, 2.0), rule)
    assert [(lesion.ml, lesion.found) for lesion in found.reference] == [(1.024, True), (0.25, False)]
    assert found.false == 1
    measures = found.measures()
    assert (measures["lesions"], measures["lesions_found"], measures["false_lesions"]) == (2, 1, 1)
    assert measures["lesion_sensitivity"] == 0.5
    assert measures["lesion_f1"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))


def test_dice_of_lesions_by_each_rule():
    of_first = dice(image((6, 8)), image((4, 8)))
    means = {rule: match_lesions(PREDICTION, REFERENCE, UNIT, rule).measures() for rule in RULES}
    assert means["overlap"]["lesion_dice"] is None
    # The false lesion counts as a lesion without overlap.
    assert means["brats2023"]["lesion_dice"] == pytest.approx(of_first / 3)
    hd95 = surface_distances(image((6, 8)), image((4, 8)), UNIT).hausdorff(95)
    assert means["brats2023"]["lesion_hd95_mm"] == pytest.approx((hd95 + 2 * 374) / 3)
    # The false lesion is nearest to the second one.
    assert means["cc"]["lesion_dice"] == pytest.approx(of_first / 2)
    assert means["cc"]["lesion_hd95_mm"] is None


def test_brats_joins_near_lesions_takes_what_is_near_and_leaves_out_the_smallest():
    near = image((10, 6), (19, 6))
    assert len(match_lesions(near, near, UNIT, "overlap").reference) == 2
    joined = match_lesions(near, near, UNIT, "brats2023")
    assert [(lesion.found, lesion.dice, lesion.hd95_mm) for lesion in joined.reference] == [(True, 1.0, 0.0)]
    # A voxel away from it, and so without overlap.
    beside = match_lesions(image((17, 5)), image((10, 6)), UNIT, "brats2023")
    assert [(lesion.found, lesion.dice) for lesion in beside.reference] == [(True, 0.0)]
    assert beside.false == 0
    # 27 mm³ do not count, and what is found there is not false.
    small = match_lesions(image((10, 3)), image((10, 3)), UNIT, "brats2023")
    assert (small.reference, small.false) == ((), 0)
    assert len(match_lesions(image((10, 3)), image((10, 3)), (1.0, 1.0, 2.0), "brats2023").reference) == 1


def test_cc_compares_each_lesion_in_its_part_of_the_image():
    reference, prediction = image((4, 8), (30, 8)), image((4, 8), (30, 8), (14, 3))
    found = match_lesions(prediction, reference, UNIT, "cc")
    assert [lesion.dice for lesion in found.reference] == pytest.approx([2 * 512 / (2 * 512 + 27), 1.0])
    # Components of the image that touch at a corner are one.
    assert len(match_lesions(image((4, 8), (12, 8)), reference, UNIT, "cc").reference) == 2


@pytest.mark.parametrize("rule", RULES)
def test_without_lesions_in_one_image_or_in_both(rule):
    none = image()
    assert match_lesions(none, none, UNIT, rule).measures() == dict.fromkeys(LESIONS)
    missed = match_lesions(none, image((4, 8)), UNIT, rule).measures()
    assert (missed["lesion_sensitivity"], missed["lesion_f1"], missed["false_lesions"]) == (0, 0, 0)
    assert missed["lesion_dice"] in (None, 0)
    false = match_lesions(image((4, 8), (30, 5)), none, UNIT, rule).measures()
    assert (false["lesions"], false["false_lesions"], false["lesion_sensitivity"], false["lesion_f1"]) == (
        0,
        2,
        None,
        0,
    )


def test_lesions_at_the_border_are_whole():
    corner = image((0, 6), (54, 6))
    for rule in RULES:
        found = match_lesions(corner, corner, UNIT, rule)
        assert [(lesion.ml, lesion.found) for lesion in found.reference] == [(0.216, True)] * 2
        assert found.false == 0


def test_what_cannot_be_matched_is_refused():
    with pytest.raises(UsageError, match="no rule for lesions 'panoptica'; known are overlap, brats2023, cc"):
        match_lesions(PREDICTION, REFERENCE, UNIT, "panoptica")
    with pytest.raises(GridError, match="shape"):
        match_lesions(PREDICTION[1:], REFERENCE, UNIT)
    with pytest.raises(UsageError, match=r"\(I, J, K\)"):
        match_lesions(PREDICTION[0], REFERENCE[0], UNIT)


def test_recall_by_volume_is_of_quarters_of_the_lesions():
    lesions = [Lesion(ml, ml > 3) for ml in (5.0, 1.0, 4.0, 2.0, 3.0)]
    assert recall_by_volume(lesions) == [
        {"from_ml": 1.0, "to_ml": 2.0, "lesions": 2, "found": 0},
        {"from_ml": 3.0, "to_ml": 3.0, "lesions": 1, "found": 0},
        {"from_ml": 4.0, "to_ml": 4.0, "lesions": 1, "found": 1},
        {"from_ml": 5.0, "to_ml": 5.0, "lesions": 1, "found": 1},
    ]
    assert recall_by_volume([]) == []


def test_the_report_pools_the_lesions_of_all_cases(tmp_path: Path):
    for folder, mask in (("predicted", PREDICTION), ("true", REFERENCE)):
        (tmp_path / folder).mkdir()
        for name in ("one", "two"):
            header = nibabel.Nifti1Header()
            header.set_xyzt_units("mm")
            stored = nibabel.Nifti1Image(mask.astype(np.uint8), np.eye(4), header)
            nibabel.save(stored, tmp_path / folder / f"{name}.nii.gz")
    report = tmp_path / "report.json"
    document = evaluate(tmp_path / "predicted", tmp_path / "true", {"a": 1}, report, lesions="overlap")
    assert document["mean"]["labels"]["a"]["lesion_sensitivity"] == 0.5
    assert [row["found"] for row in document["lesions"]["labels"]["a"]] == [0, 0, 1, 1]
    assert document["surface"] == {"definition": "surface-distance", "tolerance_mm": 1.0, "lesions": "overlap"}
    assert json.loads(report.read_text()) == document
    without = evaluate(tmp_path / "predicted", tmp_path / "true", {"a": 1})
    assert not set(LESIONS) & set(without["mean"]["labels"]["a"])
