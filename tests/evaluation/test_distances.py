"""Surface distances against closed forms, MONAI and a reference of a few lines; the policy for empty masks."""

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from scipy.spatial.distance import cdist

from tests.evaluation.test_surface import SPACINGS, blob
from volseg.errors import GridError, UsageError
from volseg.evaluation.distances import DEFINITIONS, _near_steps
from volseg.evaluation.label_distances import DISTANCES, SurfaceOptions, label_distances
from volseg.evaluation.surface import corner_areas, corner_codes
from volseg.metrics import surface_distances

UNIT = (1.0, 1.0, 1.0)


def box(start: tuple[int, int, int], edges: tuple[int, int, int], shape: tuple[int, int, int] = (30, 30, 30)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(first, first + edge) for first, edge in zip(start, edges, strict=True))] = True
    return mask


def elements(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Places in mm and areas of the surface elements, as google-deepmind/surface-distance defines them."""
    codes = corner_codes(mask)
    on = (codes > 0) & (codes < 255)
    return np.argwhere(on) * spacing_mm, corner_areas(spacing_mm)[codes[on]]


def percentile(distances: np.ndarray, areas: np.ndarray, share: float) -> float:
    order = np.argsort(distances)
    return distances[order][np.cumsum(areas[order]) >= share * areas.sum() - 1e-9][0]


@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("seed", range(3))
def test_the_default_is_what_surface_distance_defines(seed, spacing_mm):
    prediction, reference = blob(seed), blob(seed + 10)
    found = surface_distances(prediction, reference, spacing_mm)
    (here, area), (there, true_area) = elements(prediction, spacing_mm), elements(reference, spacing_mm)
    between = cdist(here, there)
    to_reference, to_prediction = between.min(axis=1), between.min(axis=0)
    assert found.hausdorff() == pytest.approx(max(to_reference.max(), to_prediction.max()))
    for share in (0.95, 0.5):
        expected = percentile(to_reference, area, share), percentile(to_prediction, true_area, share)
        assert found.directed_hausdorff(100 * share) == pytest.approx(expected)
        assert found.hausdorff(100 * share) == max(found.directed_hausdorff(100 * share))
    means = (to_reference @ area / area.sum(), to_prediction @ true_area / true_area.sum())
    assert found.directed_means() == pytest.approx(means)
    assert found.masd() == pytest.approx(np.mean(means))
    total = area.sum() + true_area.sum()
    assert found.assd() == pytest.approx((to_reference @ area + to_prediction @ true_area) / total)
    for tolerance in (0.0, 1.0, 2.3):
        within = area[to_reference <= tolerance].sum() + true_area[to_prediction <= tolerance].sum()
        assert found.surface_dice(tolerance) == pytest.approx(within / total)


def test_points_are_the_same_in_parts_near_and_far(monkeypatch):
    prediction, reference = blob(1), blob(2)
    prediction[:, :, 9:] = reference[:, :, :6] = False
    spacing = (0.7, 1.3, 5.0)
    expected = surface_distances(prediction, reference, spacing)
    for points, voxels in ((7, 8), (2**16, 1), (1000, 100)):
        monkeypatch.setattr("volseg.evaluation.distances.POINTS_AT_ONCE", points)
        monkeypatch.setattr("volseg.evaluation.distances.NEAR_VOXELS", voxels)
        _near_steps.cache_clear()
        found = surface_distances(prediction, reference, spacing)
        assert np.array_equal(found.to_reference, expected.to_reference)
        assert np.array_equal(found.to_prediction, expected.to_prediction)
    _near_steps.cache_clear()


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("definition", ["monai", "metrics-reloaded"])
def test_distances_of_voxels_are_those_of_monai(definition, spacing_mm):
    prediction, reference = blob(1), blob(2)
    found = surface_distances(prediction, reference, spacing_mm, definition)
    both = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference)]
    options = {"include_background": True, "spacing": spacing_mm}
    for wanted in (None, 95, 50):
        expected = compute_hausdorff_distance(*both, percentile=wanted, **options).item()
        assert found.hausdorff(wanted or 100) == pytest.approx(expected, rel=1e-5)
    assert found.assd() == pytest.approx(compute_average_surface_distance(*both, symmetric=True, **options).item())
    for tolerance in (0.0, 1.0, 2.3):
        assert found.surface_dice(tolerance) == pytest.approx(
            compute_surface_dice(*both, [tolerance], **options).item()
        )


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("spacing_mm", [UNIT, (1.0, 2.0, 10.0)])
@pytest.mark.parametrize("axis", range(3))
def test_a_shift_is_the_hausdorff_distance_of_boxes(definition, spacing_mm, axis):
    shift = [0, 0, 0]
    shift[axis] = 3
    found = surface_distances(
        box((5, 5, 5), (9, 8, 7)), box(tuple(5 + step for step in shift), (9, 8, 7)), spacing_mm, definition
    )
    assert found.hausdorff() == found.hausdorff(95) == 3 * spacing_mm[axis]
    assert 0 < found.assd() < 3 * spacing_mm[axis]


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_a_larger_box_is_as_far_as_its_corners(definition):
    found = surface_distances(box((3, 3, 3), (20, 20, 20)), box((5, 5, 5), (16, 16, 16)), UNIT, definition)
    assert found.directed_hausdorff() == pytest.approx((2 * math.sqrt(3), 2.0))
    assert found.surface_dice(1.9) == 0
    assert found.surface_dice(2 * math.sqrt(3)) == 1


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("mask", [box((4, 4, 4), (1, 1, 1)), box((0, 0, 0), (30, 30, 1)), np.ones((4, 5, 6), bool)])
def test_a_mask_is_at_no_distance_from_itself(definition, mask):
    found = surface_distances(mask, mask, UNIT, definition)
    assert (found.hausdorff(), found.assd(), found.masd(), found.surface_dice(0)) == (0, 0, 0, 1)


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_masks_in_a_corner_of_the_image_are_measured_as_those_in_its_middle(definition):
    pairs = [
        (box(start, (3, 4, 5)), box(tuple(one + 1 for one in start), (3, 4, 5)))
        for start in ((0, 0, 0), (9, 9, 9), (26, 25, 24))
    ]
    found = [surface_distances(*pair, UNIT, definition) for pair in pairs]
    assert len({(one.hausdorff(), one.hausdorff(95), one.assd(), one.surface_dice(0.5)) for one in found}) == 1


def test_what_is_absent_from_one_image_is_as_far_as_its_diagonal():
    some, none = box((4, 4, 4), (2, 2, 2)), np.zeros((30, 30, 30), bool)
    diagonal = math.hypot(30, 60, 90)
    for pair in ((some, none), (none, some)):
        found = surface_distances(*pair, (1.0, 2.0, 3.0))
        assert found.hausdorff() == found.hausdorff(95) == found.assd() == found.masd() == pytest.approx(diagonal)
    assert surface_distances(none, none, UNIT) is None


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"reference": np.ones((3, 3, 4))}, GridError, "shape"),
        ({"prediction": np.ones((3, 3)), "reference": np.ones((3, 3))}, UsageError, r"\(I, J, K\)"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, UsageError, "spacing"),
        ({"spacing_mm": (1.0, 1.0)}, UsageError, "spacing"),
        ({"definition": "medpy"}, UsageError, "surface-distance, monai, metrics-reloaded"),
    ],
)
def test_what_cannot_be_measured_is_refused(change, error, said):
    call = {"prediction": np.ones((3, 3, 3)), "reference": np.ones((3, 3, 3)), "spacing_mm": UNIT}
    with pytest.raises(error, match=said):
        surface_distances(**(call | change))


def test_a_percentile_and_a_tolerance_have_bounds():
    found = surface_distances(box((4, 4, 4), (2, 2, 2)), box((4, 4, 5), (2, 2, 2)), UNIT)
    with pytest.raises(UsageError, match="percentile is 101"):
        found.hausdorff(101)
    for tolerance in (-1.0, math.nan):
        with pytest.raises(UsageError, match="tolerance"):
            found.surface_dice(tolerance)
        with pytest.raises(UsageError, match="tolerance"):
            SurfaceOptions(tolerance_mm=tolerance)
    with pytest.raises(UsageError, match="no surface 'medpy'"):
        SurfaceOptions("medpy")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, ">u2"])
@pytest.mark.parametrize("values", [{"a": 1, "b": 2, "c": 7, "both": (1, 2)}, {"a": 1, "none": 9}])
def test_labels_of_an_image_are_measured_as_masks_one_by_one(dtype, values):
    rng = np.random.default_rng(3)
    prediction, reference = (np.asfortranarray((blob(seed) * rng.choice([1, 2, 7])).astype(dtype)) for seed in (4, 5))
    prediction[:4, :4], reference[2:6, :5] = 1, 2
    options = SurfaceOptions("surface-distance", 1.5)
    found = label_distances(prediction, reference, values, (1.0, 2.0, 3.0), options)
    for name, stored in values.items():
        masks = [np.isin(image, stored) for image in (prediction, reference)]
        expected = surface_distances(*masks, (1.0, 2.0, 3.0))
        if expected is None:
            assert found[name].measures == dict.fromkeys(DISTANCES)
            continue
        inside = expected.surface_dice(1.5) if all(mask.any() for mask in masks) else 0.0
        numbers = (expected.hausdorff(), expected.hausdorff(95), expected.assd(), expected.masd(), inside)
        assert tuple(found[name].measures.values()) == pytest.approx(numbers)


def test_values_far_apart_and_ignored_voxels():
    reference, prediction = np.zeros((2, 12, 12, 12), np.int64)
    reference[2:6, 2:6, 2:6], prediction[3:7, 2:6, 2:6] = 2_000_000_000, 2_000_000_000
    prediction[9:, 9:, 9:], reference[8:, 8:, 8:] = -3, 5
    call = ({"far": 2_000_000_000, "low": -3}, UNIT, SurfaceOptions())
    found = label_distances(prediction, reference, *call)
    assert found["far"].measures["hausdorff_mm"] == 1.0
    assert found["low"].measures["hausdorff_mm"] == pytest.approx(math.hypot(12, 12, 12))
    assert found["low"].measures["surface_dice"] == 0
    # Where nobody annotated, nothing is wrong.
    assert label_distances(prediction, reference, *call, ignore=5)["low"].measures == dict.fromkeys(DISTANCES)
