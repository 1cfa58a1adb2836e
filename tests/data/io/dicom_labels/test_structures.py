"""DICOM structure sets: contours on slices, and what is said of those that cannot be used."""

import shutil
import subprocess

import nibabel
import numpy as np
import pytest

from tests.data.io.dicom.writers import ROTATED, SPACING, STRAIGHT, affine_of, put, stack, write
from tests.data.io.dicom_labels.writers import blocks, on_slice, read_labels, series, structures
from volseg.data.grid.geometry import Geometry
from volseg.data.io.dicom_labels.placing import Target
from volseg.data.io.dicom_labels.reader import read_dicom_labels
from volseg.errors import GridError, InputError

SHAPE = (24, 20, 6)
SQUARE = np.array([[3.5, 4.5], [9.5, 4.5], [9.5, 12.5], [3.5, 12.5]])
HOLE = np.array([[5.5, 6.5], [5.5, 9.5], [7.5, 9.5], [7.5, 6.5]])
OTHER = SQUARE + np.array([10, 2])


def expected(slices=(1, 2)):
    mask = np.zeros(SHAPE, np.uint8)
    mask[4:10, 5:13, list(slices)] = 1
    return mask


def up(points, mm):
    """Points moved along the normal of straight slices."""
    return points + np.array([0, 0, mm])


@pytest.fixture
def ct(tmp_path):
    return series(tmp_path / "ct", SHAPE)


@pytest.mark.parametrize("axes", [STRAIGHT, ROTATED], ids=["straight", "oblique"])
def test_holes_and_several_contours_a_slice(tmp_path, axes):
    contours = {
        7: [on_slice(SQUARE, 1, axes), on_slice(HOLE, 1, axes), on_slice(SQUARE, 2, axes)],
        9: [on_slice(OTHER, 2, axes)],
    }
    found = read_labels(structures(contours), tmp_path, series(tmp_path / "ct", SHAPE, axes=axes))
    mask = expected() * 7
    mask[6:8, 7:10, 1] = 0
    mask[14:20, 7:15, 2] = 9
    assert np.array_equal(found.merged.array, mask)
    np.testing.assert_allclose(found.geometry.affine, affine_of(stack(6, axes), axes), atol=1e-5)
    assert {part.name: part.number for part in found.parts} == {"Part 7": 7, "Part 9": 9}
    assert not found.warnings


def test_the_slices_of_a_grid_may_run_along_any_axis(tmp_path):
    """The same grid with its axes in another order: contours lie across I."""
    data = structures({1: [on_slice(SQUARE, 1), on_slice(SQUARE, 2)]})
    path = write(data, tmp_path / "rt.dcm")
    affine = affine_of(stack(6))[:, [2, 0, 1, 3]]
    found = read_dicom_labels(path, Target(Geometry((6, 24, 20), affine), "the scan"))
    assert np.array_equal(found.merged.array, expected().transpose(2, 0, 1))
    assert (
        "Labels are placed by their coordinates, because the image that they are placed on states no frame of "
        "reference to check." in found.warnings
    )


def test_structures_that_cross_have_a_value_for_what_they_share(tmp_path, ct):
    found = read_labels(
        structures({1: [on_slice(SQUARE, 1)], 2: [on_slice(SQUARE + np.array([3, 0]), 1)]}), tmp_path, ct
    )
    assert found.merged.values == {1: (1, 3), 2: (2, 3)}
    with pytest.raises(InputError, match=r"labels overlap.*Part 1 and Part 2 \(24 voxels\)"):
        found.reject_overlaps("rt.dcm")


def test_numbers_that_are_no_values_are_counted_from_one(tmp_path, ct):
    found = read_labels(structures({0: [on_slice(SQUARE, 1)], 5: [on_slice(OTHER, 1)]}), tmp_path, ct)
    assert [(part.name, part.number, found.numbers[part.number]) for part in found.parts] == [
        ("Part 0", 1, 0),
        ("Part 5", 2, 5),
    ]
    assert found.merged.array[4, 5, 1] == 1
    assert "ROINumber 0 is no value of a label (1 to 65535); the structures are numbered from 1." in found.warnings


# ---- contours that are passed over, cut or rejected


def test_points_open_contours_and_empty_structures_are_passed_over_with_a_warning(tmp_path, ct):
    def change(data):
        drawn = data.ROIContourSequence
        drawn[0].ContourSequence[1].ContourGeometricType = "OPEN_PLANAR"
        drawn[1].ContourSequence[0].ContourGeometricType = "POINT"
        del drawn[2].ContourSequence

    contours = {1: [on_slice(SQUARE, 1), on_slice(SQUARE, 3)], 2: [on_slice([[1, 1]], 1)], 3: []}
    found = read_labels(structures(contours, change=change), tmp_path, ct)
    assert np.array_equal(found.merged.array, expected([1]))
    assert found.warnings == (
        "Part 1: contours passed over because they enclose nothing: 1 of OPEN_PLANAR.",
        "Part 2: contours passed over because they enclose nothing: 1 of POINT.",
        "Part 2 has no closed contour, so it is empty.",
        "Part 3 has no closed contour, so it is empty.",
        "Labels without a voxel: Part 2, Part 3.",
    )


def test_a_contour_that_is_there_twice_does_not_cancel_itself(tmp_path, ct):
    found = read_labels(structures({1: [on_slice(SQUARE, 1), on_slice(SQUARE, 1)]}), tmp_path, ct)
    assert np.array_equal(found.merged.array, expected([1]))
    assert "Part 1: 1 contours are there twice; each counts once." in found.warnings


def test_contours_that_cross_are_said(tmp_path, ct):
    found = read_labels(structures({1: [on_slice(SQUARE, 1), on_slice(SQUARE + np.array([3, 0]), 1)]}), tmp_path, ct)
    assert found.merged.voxels == {1: 2 * 48 - 2 * 24}
    assert "Part 1: contours cross on 1 slices; what lies in an even number of them is out." in found.warnings


def test_slices_without_a_contour_stay_empty_and_are_said(tmp_path, ct):
    found = read_labels(structures({1: [on_slice(SQUARE, 1), on_slice(SQUARE, 4)]}), tmp_path, ct)
    assert np.array_equal(found.merged.array, expected([1, 4]))
    assert "Part 1: 2 slices between its contours have none; they stay empty." in found.warnings


@pytest.mark.parametrize("side", [1, -1])
def test_contours_beside_their_slices_are_said_and_those_between_slices_are_rejected(tmp_path, ct, side):
    beside = up(on_slice(SQUARE, 1), side * 0.2 * SPACING[2])
    found = read_labels(structures({1: [beside]}), tmp_path, ct)
    assert np.array_equal(found.merged.array, expected([1]))
    assert "Contours lie up to 0.20 slice distances beside the slices of the scan; each is on the nearest." in (
        found.warnings
    )
    between = up(on_slice(SQUARE, 1), side * 0.4 * SPACING[2])
    with pytest.raises(GridError, match=r"1 of 2 contours lie between the slices of the scan, up to 1.20 mm"):
        read_labels(structures({1: [beside, between]}), tmp_path, ct)


def test_contours_at_an_angle_to_the_slices_are_rejected(tmp_path, ct):
    with pytest.raises(GridError, match="lie at an angle to the slices of the scan"):
        read_labels(structures({1: [on_slice(SQUARE, 1, ROTATED)]}), tmp_path, ct)


def test_what_lies_outside_the_scan_is_cut_off_with_a_warning_or_rejected(tmp_path, ct):
    beyond = [on_slice(SQUARE - [6, 0], 1), up(on_slice(SQUARE, 5), SPACING[2]), on_slice(SQUARE, 5)]
    found = read_labels(structures({1: beyond}), tmp_path, ct)
    assert found.merged.voxels == {1: 4 * 8 + 6 * 8}
    assert "Part 1: 1 of 3 contours lie outside the scan; they are left out." in found.warnings
    assert "Part 1 reaches up to 2.0 voxels beyond the scan; it is cut off there." in found.warnings
    with pytest.raises(GridError, match="all its contours lie outside the scan"):
        read_labels(structures({1: [on_slice(SQUARE + 500, 1)]}), tmp_path, ct)


def first_contour(**values):
    def change(data):
        for name, value in values.items():
            put(data.ROIContourSequence[0].ContourSequence[0], name, value)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (first_contour(ContourData="1\\2\\3\\4\\5\\6\\7\\8\\9\\10"), "has 10 numbers, which is no multiple of 3"),
        (first_contour(ContourData="1\\2\\3\\4\\5\\6\\7\\8\\x"), "not finite or above 1e\\+06 mm"),
        (first_contour(ContourData="1\\2\\3\\4\\5\\6\\7\\8\\1e30"), "not finite or above 1e\\+06 mm"),
        (first_contour(NumberOfContourPoints="5"), "has 4 points, but NumberOfContourPoints is 5"),
        (first_contour(ContourGeometricType="POINT"), "no structure has a closed contour"),
        (lambda data: setattr(data.ROIContourSequence[0], "ReferencedROINumber", 4), "belong to ROI 4, which"),
        (lambda data: delattr(data, "StructureSetROISequence"), "StructureSetROISequence is absent or empty"),
        (lambda data: delattr(data, "ROIContourSequence"), "no structure has a closed contour"),
    ],
)
def test_faults_are_named(tmp_path, ct, change, words):
    with pytest.raises(InputError, match=words) as caught:
        read_labels(structures({1: [on_slice(SQUARE, 1)]}, change=change), tmp_path, ct)
    assert "Secret" not in str(caught.value)


def test_a_file_that_ends_early_is_rejected_or_whole(tmp_path, ct):
    path = write(structures({1: [on_slice(SQUARE, 1), on_slice(SQUARE, 2)]}), tmp_path / "rt.dcm")
    content = path.read_bytes()
    for size in range(400, len(content) - 1, 37):
        path.write_bytes(content[:size])
        with pytest.raises(InputError):
            read_dicom_labels(path, Target(Geometry(SHAPE, affine_of(stack(6))), "the scan"))


@pytest.mark.skipif(shutil.which("plastimatch") is None, reason="plastimatch is not installed")
def test_the_same_as_plastimatch(tmp_path, ct):
    """It fills contours by its own rule, so border voxels may differ; nothing may be shifted or mirrored."""
    angles = np.linspace(0, 2 * np.pi, 70, endpoint=False)
    blob = np.column_stack([11 + 8 * np.cos(angles) + 1.5 * np.cos(3 * angles), 9 + 6 * np.sin(angles)])
    path = write(structures({1: [on_slice(blob, k) for k in (1, 2, 3)]}), tmp_path / "rt" / "rt.dcm")
    found = read_dicom_labels(path)
    subprocess.run(
        ["plastimatch", "convert", "--input", path, "--referenced-ct", ct, "--output-prefix", tmp_path / "masks",
         "--prefix-format", "nii.gz"],
        check=True, capture_output=True,
    )  # fmt: skip
    (written,) = (tmp_path / "masks").iterdir()
    theirs = nibabel.load(written)
    to_ours = np.linalg.inv(found.geometry.affine) @ theirs.affine
    at = np.argwhere(np.asanyarray(theirs.dataobj) > 0)
    mask = np.zeros(SHAPE, bool)
    mask[tuple(np.round(at @ to_ours[:3, :3].T + to_ours[:3, 3]).astype(int).T)] = True
    ours = found.merged.array == 1
    assert 2 * (mask & ours).sum() / (mask.sum() + ours.sum()) > 0.98
    np.testing.assert_allclose(np.argwhere(mask).mean(axis=0), np.argwhere(ours).mean(axis=0), atol=0.3)


def test_blocks_have_no_symmetry():
    """Which the other tests rely on."""
    one = blocks()[1]
    assert all(not np.array_equal(one, np.flip(one, axis)) for axis in range(3))
