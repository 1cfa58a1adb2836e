"""Overlap of label images: hand-counted cases, the empty-mask policy, the definitions, and properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volseg.data.grid.geometry import Geometry
from volseg.errors import GridError
from volseg.evaluation.overlap import ABSENT, Overlap, label_overlaps, values_in

VALUES = {"a": 1, "b": 2, "c": 7}


def random_labels(seed: int, shape: tuple[int, int, int] = (5, 6, 7)) -> np.ndarray:
    return np.random.default_rng(seed).choice([0, 1, 2, 7], size=shape, p=[0.4, 0.3, 0.2, 0.1])


def test_measures_counted_by_hand_with_unequal_voxel_sizes() -> None:
    # 0.5 x 2 x 5 mm: a voxel is 5 cubic millimetres.
    voxel_ml = Geometry((4, 2, 1), np.diag([0.5, 2.0, 5.0, 1.0])).voxel_ml
    reference = np.array([[1, 1], [1, 1], [2, 0], [0, 0]], dtype=np.uint8)[..., None]
    prediction = np.array([[1, 1], [1, 0], [1, 1], [2, 0]], dtype=np.uint8)[..., None]
    overlaps = label_overlaps(prediction, reference, {"two": 2, "one": 1}, voxel_ml)
    assert list(overlaps) == ["two", "one"]
    one = overlaps["one"]
    assert (one.dice, one.iou, one.precision, one.recall) == (6 / 9, 3 / 6, 3 / 5, 3 / 4)
    assert (one.reference_ml, one.prediction_ml, one.volume_difference_ml) == pytest.approx((0.02, 0.025, 0.005))
    two = overlaps["two"]
    assert (two.dice, two.iou, two.precision, two.recall) == (0.0, 0.0, 0.0, 0.0)
    assert (two.reference_ml, two.prediction_ml, two.volume_difference_ml) == pytest.approx((0.005, 0.005, 0.0))


def test_volumes_have_no_noise_of_binary_fractions() -> None:
    reference, prediction = np.zeros((2, 2000), np.uint8)
    reference[:1765], prediction[:1528] = 1, 1
    found = label_overlaps(prediction, reference, {"a": 1}, 0.001)["a"]
    assert (found.reference_ml, found.prediction_ml, found.volume_difference_ml) == (1.765, 1.528, -0.237)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ([0, 0], [0, 0], ABSENT),
        ([1, 1], [0, 0], Overlap(0.0, 0.0, 0.0, 0.0, 0.0, 6.0, 6.0)),
        ([0, 0], [1, 0], Overlap(0.0, 0.0, 0.0, 0.0, 3.0, 0.0, -3.0)),
        ([1, 0], [1, 0], Overlap(1.0, 1.0, 1.0, 1.0, 3.0, 3.0, 0.0)),
        ([1, 0], [0, 1], Overlap(0.0, 0.0, 0.0, 0.0, 3.0, 3.0, 0.0)),
    ],
    ids=["absent from both", "only predicted", "only in the reference", "equal", "disjoint"],
)
def test_empty_masks(prediction: list[int], reference: list[int], expected: Overlap) -> None:
    images = [np.array(labels, dtype=np.uint8).reshape(1, 1, 2) for labels in (prediction, reference)]
    assert label_overlaps(*images, {"a": 1}, 3.0) == {"a": expected}


def test_no_labels_and_other_values_are_background() -> None:
    prediction, reference = np.full((2, 2, 2), 9), np.full((2, 2, 2), 3)
    assert label_overlaps(prediction, reference, {}, 1.0) == {}
    assert label_overlaps(prediction, reference, {"a": 5}, 1.0) == {"a": ABSENT}
    assert label_overlaps(prediction, reference, {"a": 3}, 1.0)["a"].reference_ml == 8.0


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_definitions_on_sets_of_voxels(seed: int) -> None:
    prediction, reference = random_labels(seed), random_labels(seed + 100)
    overlaps = label_overlaps(prediction, reference, VALUES, 1.0)
    for name, value in VALUES.items():
        found, true = ({tuple(voxel) for voxel in np.argwhere(image == value)} for image in (prediction, reference))
        common = len(found & true)
        assert common > 0
        expected = (
            2 * common / (len(found) + len(true)),
            common / len(found | true),
            common / len(found),
            common / len(true),
        )
        overlap = overlaps[name]
        assert (overlap.dice, overlap.iou, overlap.precision, overlap.recall) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_storage_does_not_matter(dtype: type, order: str) -> None:
    prediction, reference = random_labels(1), random_labels(2)
    stored = np.array(prediction, dtype=dtype, order=order)[::-1]
    assert label_overlaps(stored, reference[::-1], VALUES, 2.0) == label_overlaps(prediction, reference, VALUES, 2.0)


def test_values_far_apart_and_negative() -> None:
    prediction = np.array([-3, 2_000_000_000, 0, 14175], dtype=np.int32).reshape(2, 1, 2)
    overlaps = label_overlaps(prediction, prediction, {"low": -3, "high": 2_000_000_000, "none": 4}, 1.0)
    assert (overlaps["low"].dice, overlaps["high"].reference_ml, overlaps["none"]) == (1.0, 1.0, ABSENT)
    assert values_in(prediction) == {-3, 14175, 2_000_000_000}


def test_values_in_an_empty_image() -> None:
    assert values_in(np.zeros((3, 2, 1), dtype=np.uint8)) == set()


@pytest.mark.parametrize("seed", range(3))
def test_regions_are_compared_as_all_their_values_together_and_ignored_voxels_left_out(seed: int) -> None:
    prediction, reference = random_labels(seed), random_labels(seed + 100)
    reference[2:4, 1:] = 9
    regions = {"whole": (1, 2, 7), "core": (7, 2), "a": 1, "none": (4, 5)}
    overlaps = label_overlaps(prediction, reference, regions, 1.0, ignore=9)
    for name, values in regions.items():
        p, r = (np.isin(labels[reference != 9], values) for labels in (prediction, reference))
        found = overlaps[name]
        assert (found.prediction_ml, found.reference_ml) == (p.sum(), r.sum())
        assert found.dice == (2 * (p & r).sum() / (p.sum() + r.sum()) if p.any() or r.any() else None)
        assert found.iou == ((p & r).sum() / (p | r).sum() if p.any() or r.any() else None)


def test_shapes_have_to_agree() -> None:
    with pytest.raises(GridError, match=r"\(2, 2, 2\).*\(2, 2, 3\)"):
        label_overlaps(np.zeros((2, 2, 2), int), np.zeros((2, 2, 3), int), VALUES, 1.0)


@settings(max_examples=50, deadline=None)
@given(first=st.integers(0, 10**6), second=st.integers(0, 10**6))
def test_exchange_of_prediction_and_reference(first: int, second: int) -> None:
    prediction, reference = random_labels(first, (2, 2, 3)), random_labels(second, (2, 2, 3))
    one_way = label_overlaps(prediction, reference, VALUES, 0.5)
    other_way = label_overlaps(reference, prediction, VALUES, 0.5)
    for name in VALUES:
        there, back = one_way[name], other_way[name]
        assert (there.dice, there.iou, there.precision, there.recall) == (
            back.dice,
            back.iou,
            back.recall,
            back.precision,
        )
        assert (there.reference_ml, there.volume_difference_ml) == (back.prediction_ml, -back.volume_difference_ml)
        if there.dice is not None and there.iou is not None:
            assert there.iou == pytest.approx(there.dice / (2 - there.dice), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), renumbering=st.permutations([1, 2, 7]))
def test_renumbering_labels_and_reordering_voxels_change_nothing(seed: int, renumbering: list[int]) -> None:
    prediction, reference = random_labels(seed), random_labels(seed + 1)
    table = np.zeros(8, dtype=np.int64)
    table[[1, 2, 7]] = renumbering
    moved = [table[labels].transpose(2, 0, 1)[:, ::-1] for labels in (prediction, reference)]
    renumbered = {name: int(table[value]) for name, value in VALUES.items()}
    assert label_overlaps(*moved, renumbered, 1.0) == label_overlaps(prediction, reference, VALUES, 1.0)
