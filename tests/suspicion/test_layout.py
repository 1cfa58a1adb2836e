"""Labels that lie to each other as in a patient whose scan has another orientation."""

import numpy as np
import pytest

from volseg.config import Label, ScanRanges
from volseg.data.grid.geometry import Geometry
from volseg.suspicion.layout import question_layout
from volseg.suspicion.places import places_of
from volseg.suspicion.turns import MIRRORED, SAME, in_words, turned, turns

TABLE = [
    Label(name=name, value=value) for value, name in enumerate(("kidney_left", "kidney_right", "liver", "spine"), 1)
]
RAS = np.diag([1.0, 1.0, 1.0, 1.0])
LENGTHS = ((1.0, 1.0),) * 3


def image() -> np.ndarray:
    """Left kidney, right kidney, liver on the right in front and high, spine behind; R, A, S."""
    labels = np.zeros((44, 40, 36), np.uint8)
    labels[6:12, 8:14, 8:16] = 1
    labels[32:38, 8:14, 8:16] = 2
    labels[24:42, 18:36, 18:32] = 3
    labels[19:25, 2:8, 4:32] = 4
    return labels


def known(labels=None, width=0.03) -> ScanRanges:
    """The ranges of training cases that all look about like `labels`."""
    labels = image() if labels is None else labels
    places = places_of(labels, TABLE)
    offsets = {name: (one - places.centre) / places.edges for name, one in places.centres.items()}
    ranges = {name: tuple((one - width, one + width) for one in offset) for name, offset in offsets.items()}
    return ScanRanges(spacing_mm=LENGTHS, extent_mm=LENGTHS, quantiles=(), offsets=ranges)


def asked(labels, affine=RAS, ranges=None) -> str:
    geometry = Geometry(labels.shape, affine)
    found = question_layout(places_of(labels, TABLE), geometry, ranges or known())
    assert {one.flag for one in found} <= {"orientation_suspect"}
    return " ".join(one.sentence for one in found)


def lying(turn, affine=RAS):
    """The header after which `turn` is right."""
    inverse = tuple(map(tuple, np.array(turn).T))
    return turned(Geometry(image().shape, affine), inverse).affine


def test_labels_in_their_places_are_not_suspect():
    assert asked(image()) == ""
    assert asked(image()[::-1, :, ::-1], np.diag([-1.0, 1.0, -1.0, 1.0])) == ""
    moved = image()
    moved[24:42, 18:36, 18:32] = 0
    moved[26:42, 22:36, 18:32] = 3
    assert asked(moved) == ""


@pytest.mark.parametrize("turn", [one for one in turns() if one != SAME])
def test_every_rotated_header_is_named(turn):
    said = asked(image(), lying(turn))
    assert f"looks {in_words(turn)}:" in said
    assert "lies where it lies in no training case" in said


@pytest.mark.parametrize("by_place", [False, True], ids=["by its looks", "by its place"])
def test_a_mirrored_header_is_named_whether_sides_were_found_by_looks_or_by_place(by_place):
    labels = image()
    if by_place:
        left, right = labels == 1, labels == 2
        labels[left], labels[right] = 2, 1
    said = asked(labels, lying(MIRRORED))
    assert "the scan looks mirrored left-right: " in said


def test_only_models_with_left_and_right_labels_are_asked_about_mirrors():
    labels = image()
    labels[labels == 2] = 0
    assert asked(labels, lying(MIRRORED), known(labels)) == ""


def test_a_layout_that_no_orientation_explains_is_not_suspect():
    labels = image()
    labels[labels == 4] = 0
    labels[19:25, 2:8, 30:36] = 4
    labels[19:25, 34:38, 0:2] = 4
    assert asked(labels) == ""


def test_models_without_ranges_and_results_of_two_labels_have_no_layout():
    geometry = Geometry(image().shape, lying(MIRRORED))
    places = places_of(image(), TABLE)
    assert question_layout(places, geometry, None) == []
    assert question_layout(places, geometry, known().model_copy(update={"offsets": {}})) == []
    only = np.where(image() >= 3, image(), 0).astype(np.uint8)
    assert question_layout(places_of(only, TABLE), geometry, known()) == []


def test_there_are_24_rotations_and_as_many_mirror_images():
    every = [*turns(), *turns(mirrored=True)]
    assert len(set(every)) == 48
    assert next(turns()) == SAME
    assert next(turns(mirrored=True)) in [
        tuple(map(tuple, np.diag(one))) for one in ((-1, 1, 1), (1, -1, 1), (1, 1, -1))
    ]
    assert [round(np.linalg.det(np.array(turn))) for turn in every] == [1] * 24 + [-1] * 24


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (
            ((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
            "rotated by 180 degrees about the foot-head axis "
            "(its right is the patient's left, its front is the patient's back)",
        ),
        (
            ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
            "rotated by 90 degrees about the left-right axis "
            "(its front is the patient's head, its head is the patient's back)",
        ),
        (
            ((0, 0, 1), (1, 0, 0), (0, 1, 0)),
            "rotated (its right is the patient's front, its front is the patient's head, "
            "its head is the patient's right)",
        ),
        (((-1, 0, 0), (0, 1, 0), (0, 0, 1)), "mirrored left-right"),
        (
            ((-1, 0, 0), (0, -1, 0), (0, 0, -1)),
            "mirrored and rotated (its right is the patient's left, its front is the patient's back, "
            "its head is the patient's foot)",
        ),
    ],
)
def test_a_turn_is_said_in_words(turn, words):
    assert in_words(turn) == words


def test_a_turned_geometry_keeps_voxel_sizes_and_its_centre():
    affine = np.array([[0, 0, 2.0, 5], [-1.5, 0, 0, 7], [0, 3.0, 0, -4], [0, 0, 0, 1]])
    before = Geometry((10, 20, 31), affine)
    centre = np.array([4.5, 9.5, 15, 1])
    for turn in turns():
        after = turned(before, turn)
        assert after.spacing_mm == pytest.approx(before.spacing_mm)
        assert (after.affine @ centre).tolist() == pytest.approx((affine @ centre).tolist())
        assert np.allclose(after.affine[:3, :3], np.array(turn) @ affine[:3, :3])
