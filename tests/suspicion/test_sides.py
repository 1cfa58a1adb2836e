"""Left and right labels on the wrong side."""

import numpy as np
import pytest

from volseg.config import Label
from volseg.data.grid.geometry import Geometry
from volseg.suspicion import places
from volseg.suspicion.places import places_of
from volseg.suspicion.sides import mismatched_sides

TABLE = [
    Label(name="kidney_left", value=1),
    Label(name="kidney_right", value=2),
    Label(name="lung L", value=300),
    Label(name="lung R", value=4),
    Label(name="liver", value=5),
]
RAS = np.diag([1.5, 1.5, 3.0, 1.0])
LPS = np.diag([-1.5, -1.5, 3.0, 1.0])


def image(left: int, right: int) -> np.ndarray:
    """Kidneys at these places along I, lungs always low and high."""
    labels = np.zeros((40, 30, 20), np.uint16)
    labels[left : left + 4, 10:14, 3:8] = 1
    labels[right : right + 4, 12:15, 3:8] = 2
    labels[8:12, 4:9, 12:18] = 300
    labels[28:32, 4:9, 12:18] = 4
    labels[15:30, 20:25, 8:12] = 5
    return labels


def wrong(labels: np.ndarray, affine: np.ndarray, table=TABLE) -> set[str]:
    return mismatched_sides(places_of(labels, table), Geometry(labels.shape, affine))


def test_a_left_label_right_of_its_partner_is_found_with_its_partner():
    assert wrong(image(5, 30), RAS) == set()
    found = wrong(image(30, 5), RAS)
    assert found == {"kidney_left", "kidney_right"}


def test_sides_are_those_of_the_patient_in_every_voxel_order():
    labels = image(30, 5)
    assert wrong(labels, LPS) == {"lung L", "lung R"}
    # K from left to right, oblique by 20 degrees.
    turned = np.moveaxis(image(5, 30), 0, 2)
    angle = np.radians(20)
    affine = np.eye(4)
    affine[:3, :3] = [[0, np.sin(angle), np.cos(angle)], [1, 0, 0], [0, np.cos(angle), -np.sin(angle)]]
    assert wrong(turned, affine) == set()
    affine[0] *= -1
    assert len(wrong(turned, affine)) == 4


@pytest.mark.parametrize("absent", [1, 2])
def test_a_label_without_its_partner_is_on_no_wrong_side(absent):
    labels = image(30, 5)
    labels[labels == absent] = 0
    assert wrong(labels, RAS) == set()


def test_models_without_sides_have_none_wrong():
    assert wrong(image(30, 5), RAS, TABLE[4:]) == set()


def test_a_large_image_is_sampled(monkeypatch):
    whole = places_of(image(30, 5).repeat(2, 0), TABLE)
    monkeypatch.setattr(places, "MOST_VOXELS", 6000)
    few = places_of(image(30, 5).repeat(2, 0), TABLE)
    assert few.centres.keys() == whole.centres.keys()
    for name, centre in few.centres.items():
        assert np.abs(centre - whole.centres[name]).max() <= 1.5
    assert wrong(image(30, 5).repeat(2, 0), RAS) == {"kidney_left", "kidney_right"}


def test_places_are_means_of_voxels_and_the_box_of_all():
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[2:4, 1, 5:8] = 1
    labels[7, 9, 5] = 2
    table = [Label(name="both", value=1, parts=(1, 2)), Label(name="core", value=2, parts=(2,)), TABLE[2]]
    found = places_of(labels, table)
    assert {name: one.tolist() for name, one in found.centres.items()} == {
        "both": pytest.approx([22 / 7, 15 / 7, 41 / 7]),
        "core": [7, 9, 5],
    }
    assert found.centre.tolist() == pytest.approx([22 / 7, 15 / 7, 41 / 7])
    assert found.edges.tolist() == [6, 9, 3]
    assert places_of(np.zeros((3, 3, 3), np.uint8), table) is None
