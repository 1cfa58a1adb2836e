"""Which series labels belong to, and what is said where their UIDs are stale."""

import os

import numpy as np
import pytest

from tests.data.io.dicom.writers import CT, classic, stack, write, write_all
from tests.data.io.dicom_labels.test_structures import SHAPE, SQUARE, expected
from tests.data.io.dicom_labels.writers import blocks, on_slice, read_labels, segmentation, series, structures
from volseg.data.io.dicom_labels.reader import holds_labels, read_dicom_labels
from volseg.errors import GridError, InputError


def square(**options):
    return structures({1: [on_slice(SQUARE, 1)]}, **options)


def no_frame(data):
    del data.FrameOfReferenceUID
    for one in data.get("StructureSetROISequence", []):
        del one.ReferencedFrameOfReferenceUID
    if "ReferencedFrameOfReferenceSequence" in data:
        del data.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID


def other_frame(data):
    data.FrameOfReferenceUID = "1.2.8"
    for one in data.get("StructureSetROISequence", []):
        one.ReferencedFrameOfReferenceUID = "1.2.8"


def stale(data):
    data.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.9.9"
    for one in data.ReferencedSeriesSequence[0].ReferencedInstanceSequence:
        one.ReferencedSOPInstanceUID += ".0"


@pytest.mark.parametrize(
    ("options", "warnings"),
    [
        ({}, []),
        ({"series_uid": "1.9.9"}, []),
        (
            {"images": ["1.9.1", "1.9.2"]},
            ["References are stale: none of the 2 images that it names is in the series; placed by the series and the "
             "coordinates."],
        ),
        (
            {"images": ["1.9.1"], "series_uid": "1.9.9"},
            ["References are stale: none of the 1 images that it names is in the series; placed by the frame of "
             "reference and the coordinates."],
        ),
    ],
)  # fmt: skip
def test_a_series_beside_is_found_by_images_by_series_or_by_the_frame_of_reference(tmp_path, options, warnings):
    """A series of another frame of reference lies beside it, too."""
    series(tmp_path / "ct", SHAPE)
    write_all(
        tmp_path / "elsewhere",
        classic(np.zeros((3, 3, 2), np.uint8), FrameOfReferenceUID="1.2.8", SeriesInstanceUID="1.2.3.6"),
    )
    found = read_labels(square(**options), tmp_path)
    assert np.array_equal(found.merged.array, expected([1]))
    assert list(found.warnings) == warnings
    assert found.record["grid_of_series"] == "1.2.3.4"


def test_several_series_that_it_may_belong_to_are_rejected(tmp_path):
    series(tmp_path / "ct", SHAPE)
    array = np.arange(24 * 20 * 6, dtype=np.int16).reshape(SHAPE)

    def change(k, data):
        data.SeriesInstanceUID, data.SOPInstanceUID = "1.2.3.5", f"1.2.3.5.{k}"

    write_all(tmp_path / "second", classic(array, sop_class=CT, change=change))
    assert read_labels(square(), tmp_path).record["grid_of_series"] == "1.2.3.4"
    with pytest.raises(InputError, match=r"may belong to 2 series beside it; give the scan .*--like"):
        read_labels(square(images=["1.9.1"], series_uid="1.9.9"), tmp_path)


@pytest.mark.parametrize("which", ["structures", "segmentation"])
def test_another_frame_of_reference_is_rejected_whatever_else_connects_them(tmp_path, which):
    data = square(change=other_frame) if which == "structures" else segmentation(blocks(), change=other_frame)
    with pytest.raises(GridError, match="has another frame of reference than the scan"):
        read_labels(data, tmp_path, series(tmp_path / "ct", SHAPE))


def test_without_a_frame_of_reference_uids_connect_them_or_nothing_does(tmp_path):
    ct = series(tmp_path / "ct", SHAPE)
    assert read_labels(square(change=no_frame), tmp_path, ct).merged.voxels == {1: 48}
    with pytest.raises(
        GridError, match=r"nothing connects it with the scan.* one does not state a FrameOfReferenceUID"
    ):
        read_labels(square(change=no_frame, images=["1.9.1"], series_uid="1.9.9"), tmp_path, ct)


def test_a_segmentation_with_stale_references_is_placed_with_a_warning(tmp_path):
    found = read_labels(segmentation(blocks(), change=stale), tmp_path, series(tmp_path / "ct", (7, 5, 4)))
    assert found.merged.voxels[1] > 0
    assert found.warnings == (
        "References are stale: none of the 4 images that it names is in the series; placed by the frame of reference "
        "and the coordinates.",
    )


def test_a_structure_set_alone_is_rejected(tmp_path):
    folder = tmp_path / "a" / "b"
    with pytest.raises(GridError, match=r"neither in its folder nor in the folder above .*--like"):
        read_labels(square(), folder)


def test_pipes_and_broken_links_beside_are_passed_over(tmp_path):
    """A pipe without a writer would be waited for."""
    series(tmp_path / "ct", SHAPE)
    before = read_labels(square(), tmp_path).merged
    os.mkfifo(tmp_path / "a.dcm")
    (tmp_path / "b.dcm").symlink_to(tmp_path / "a.dcm")
    (tmp_path / "c.dcm").symlink_to(tmp_path / "gone.dcm")
    found = read_labels(square(), tmp_path).merged
    assert np.array_equal(found.array, before.array)
    assert found.array.any()


def test_a_series_with_a_missing_slice_beside_is_rejected(tmp_path):
    ct = series(tmp_path / "ct", SHAPE)
    sorted(ct.iterdir())[2].unlink()
    with pytest.raises(InputError, match="not evenly spaced"):
        read_labels(square(), tmp_path)


def test_a_folder_holds_labels_if_it_holds_one_object_and_no_image(tmp_path):
    path = write(segmentation(blocks()), tmp_path / "labels" / "seg")
    assert holds_labels(path.parent)
    assert read_dicom_labels(path.parent).merged.voxels[1] > 0
    write(square(), tmp_path / "labels" / "rt.dcm")
    with pytest.raises(
        InputError, match=r"contains 2 segmentations or structure sets: file 1 of 2 by name \(RTSTRUCT\), file 2 of 2"
    ):
        holds_labels(path.parent)
    series(tmp_path / "labels")
    assert not holds_labels(path.parent)


def test_a_tilted_series_holds_contours_on_its_slices(tmp_path):
    positions = stack(6) + np.arange(6)[:, None] * np.array([0, 0.8, 0])
    ct = series(tmp_path / "ct", SHAPE, positions=positions)
    moved = on_slice(SQUARE, 3) + np.array([0, 3 * 0.8, 0])
    found = read_labels(structures({1: [moved]}), tmp_path, ct)
    assert np.array_equal(found.merged.array, expected([3]))


def test_a_file_that_cannot_be_read_is_named_by_number(tmp_path):
    """Names of files often hold that of a patient."""
    write(segmentation(blocks()), tmp_path / "labels" / "a.dcm")
    (tmp_path / "labels" / "secret.dcm").symlink_to(tmp_path / "gone.dcm")
    with pytest.raises(InputError, match="labels: file 2 of 2 by name cannot be read") as found:
        holds_labels(tmp_path / "labels")
    assert "secret" not in str(found.value)
