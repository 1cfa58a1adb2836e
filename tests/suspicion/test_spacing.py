"""Voxel sizes that cannot be true, and scans that cover too little."""

import numpy as np
import pytest

from volseg.config import Label, ScanRanges
from volseg.data.grid.geometry import Geometry
from volseg.inference.quality import LabelQuality
from volseg.suspicion.spacing import question_field_of_view, question_spacing

# Crops of one organ: 1 mm voxels, little variation.
CROPS = ScanRanges(spacing_mm=((1.0, 1.0),) * 3, extent_mm=((31.0, 43.0), (40.0, 59.0), (24.0, 47.0)), quantiles=())
# CT of every extent.
BODIES = ScanRanges(
    spacing_mm=((0.6, 1.0), (0.6, 1.0), (0.7, 5.0)), extent_mm=((250, 500), (250, 500), (150, 1900)), quantiles=()
)
LABELS = [Label(name="a", value=1, volume_ml_range=(1.0, 2.0)), Label(name="b", value=2, volume_ml_range=(1.0, 2.0))]


def geometry(shape, spacing) -> Geometry:
    return Geometry(shape, np.diag([*spacing, 1.0]))


def measured(*volumes, flags=()) -> list[LabelQuality]:
    return [LabelQuality(one.name, one.value, 9, ml, None, flags) for one, ml in zip(LABELS, volumes, strict=True)]


def suspect(shape, spacing, ranges=CROPS, volumes=(1.5, 1.5), flags=()) -> str:
    found = question_spacing(geometry(shape, spacing), ranges, LABELS, measured(*volumes, flags=flags))
    return " ".join(one.sentence for one in found)


def test_a_usual_scan_is_not_suspect():
    assert suspect((36, 50, 35), (1, 1, 1)) == ""
    assert suspect((36, 50, 35), (1.1, 0.9, 1.2)) == ""
    assert suspect((36, 50, 35), (2, 2, 2), None) == ""


@pytest.mark.parametrize("factor", [2, 0.5, 10, 0.1])
def test_all_lengths_wrong_by_a_factor_are_suspect(factor):
    said = suspect((36, 50, 35), (factor,) * 3)
    assert f"left-right {factor:.3g} mm and {36 * factor:.3g} mm" in said
    assert "foot-head 1 mm and 24 to 47 mm" in said


def test_only_the_wrong_axis_is_named_in_patient_directions():
    turned = Geometry((50, 35, 36), np.array([[0, 0, -1, 0], [1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1.0]]))
    (found,) = question_spacing(turned, CROPS, LABELS, measured(1.5, 1.5))
    assert "foot-head 2 mm and 70 mm" in found.sentence
    assert "left-right" not in found.sentence


def test_another_part_of_the_body_is_no_wrong_voxel_size():
    # A whole head with usual voxels, and one with coarse voxels: no factor makes it a crop.
    assert suspect((160, 200, 180), (1, 1, 1)) == ""
    assert suspect((80, 100, 90), (2, 2, 2)) == ""
    # A thin slab with coarse voxels.
    assert suspect((18, 25, 3), (2, 2, 2)) == ""


def test_sizes_within_a_wide_range_are_not_suspect_but_for_the_volumes():
    assert suspect((512, 512, 300), (0.8, 0.8, 1.0), BODIES) == ""
    # Voxels of 0.8 mm that a converter called 1.6 mm: the scan is 819 mm wide.
    assert "left-right 1.6 mm and 819 mm" in suspect((512, 512, 300), (1.6, 1.6, 2.0), BODIES)
    # A part of it: the extent is usual, and the organs are eight times too large.
    part = (200, 200, 100), (1.6, 1.6, 2.0), BODIES
    assert suspect(*part) == ""
    assert "left-right 1.6 mm and 320 mm" in suspect(*part, (12.0, 11.0))
    assert suspect(*part, (12.0, 1.5)) == ""


def test_labels_that_the_scan_cuts_off_are_no_evidence_for_small_voxels():
    # The scan reaches 300 mm, as usual, with voxels of half the usual size.
    scan = (1000, 1000, 300), (0.3, 0.3, 1.0), BODIES, (0.2, 0.2)
    assert "left-right 0.3 mm" in suspect(*scan)
    assert suspect(*scan, flags=("touches_border",)) == ""


def test_absent_labels_and_those_without_a_range_are_no_evidence():
    scan = geometry((200, 200, 100), (1.6, 1.6, 2.0))
    bare = [Label(name="a", value=1), Label(name="b", value=2, volume_ml_range=(0.0, 0.0))]
    assert question_spacing(scan, BODIES, bare, measured(12.0, None)) == []


def small(shape, spacing=(1, 1, 1), ranges=CROPS) -> str:
    return " ".join(one.sentence for one in question_field_of_view(geometry(shape, spacing), ranges))


def test_a_scan_that_covers_less_than_any_training_scan_says_along_which_axis():
    assert small((36, 50, 35)) == ""
    # A little less than the smallest is usual.
    assert small((36, 33, 35)) == ""
    assert small((36, 25, 35)) == (
        "The scan covers 25 mm back-front, the training scans at least 40 mm. "
        "Labels may be cut off or miss their context."
    )
    assert small((18, 25, 35)).count("training scans at least") == 2
    assert small((400, 400, 400)) == ""
    assert small((2, 2, 2), ranges=None) == ""
