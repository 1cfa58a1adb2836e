"""Labels in DICOM are compared by their names: numbers of segments and structures mean nothing outside the object."""

import json

import nibabel
import numpy as np
import pytest

import volseg
from tests.data.io.dicom.writers import write
from tests.data.io.dicom_labels.writers import SHAPE, blocks, on_slice, segmentation, series, structures
from tests.data.small_cases import small_plan
from volseg.data.cases.cache import cache_key
from volseg.data.cases.dataset import TrainingCase
from volseg.data.io.dicom_labels.label_names import Named, by_name, matching
from volseg.errors import GridError, InputError

OUTER = np.array([[0.5, 0.5], [5.5, 0.5], [5.5, 3.5], [0.5, 3.5]])


def called(names):
    """A change of a segmentation that gives its segments names by number."""

    def change(data):
        for one in data.SegmentSequence:
            one.SegmentLabel = names[one.SegmentNumber]

    return change


def seg(path, names, masks=None, kind="BINARY", more=None):
    def change(data):
        called(names)(data)
        if more:
            more(data)

    return write(segmentation(masks or blocks(), kind=kind, change=change), path)


@pytest.fixture
def ct(tmp_path):
    return series(tmp_path / "ct")


@pytest.fixture
def image(tmp_path, ct):
    """Writes a label image of the two blocks with any values on the grid of the series."""

    def write_image(first, second, name="labels.nii.gz"):
        path = tmp_path / "images" / name
        volseg.convert(ct, path, overwrite=True)
        found = nibabel.load(path)
        array = (first * blocks()[1] + second * blocks()[2]).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(array, found.affine), path)
        return path

    return write_image


def dice(*arguments, **options):
    report = volseg.evaluate(*arguments, **options)
    return {name: one["dice"] for name, one in report["cases"][0]["labels"].items()}, report["warnings"]


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("labels", [{"rod": 2, "ball": 4}, {"ball": 1, "rod": 2}])
@pytest.mark.parametrize("dicom_is", ["prediction", "reference"])
def test_segments_get_the_values_of_the_labels_of_their_names(tmp_path, image, kind, labels, dicom_is):
    """Values with gaps and swapped ones."""
    path, other = seg(tmp_path / "seg.dcm", {1: "rod", 2: "ball"}, kind=kind), image(labels["rod"], labels["ball"])
    pair = (path, other) if dicom_is == "prediction" else (other, path)
    found, warnings = dice(*pair, labels=labels)
    assert found == {"rod": 1.0, "ball": 1.0}
    assert not any("number" in one for one in warnings)


def test_structures_get_the_values_of_the_labels_of_their_names(tmp_path, image):
    path = write(structures({1: [on_slice(OUTER, 1)]}, names={1: "ball"}), tmp_path / "rt.dcm")
    mask = np.zeros(SHAPE, bool)
    mask[1:6, 1:4, 1] = True
    found, _ = dice(path, image(1, 2), labels={"rod": 1, "ball": 2})
    shared = np.count_nonzero(mask & blocks()[2])
    assert found["ball"] == pytest.approx(2 * shared / (mask.sum() + blocks()[2].sum()))
    assert found["rod"] == 0


def test_names_differ_in_case_and_separators(tmp_path, image):
    path = seg(tmp_path / "seg.dcm", {1: "Left Kidney", 2: "right-kidney"})
    found, _ = dice(path, image(7, 3), labels={"left_kidney": 7, "Right_Kidney": 3})
    assert found == {"left_kidney": 1.0, "Right_Kidney": 1.0}


def test_ambiguous_names_do_not_match():
    assert matching(["a b", "A_B", "c"], ["ab", "c"]) == {"c": "c"}
    assert matching(["ab"], ["a b", "A_B"]) == {}
    assert matching(["a b", "A_B"], ["a b", "a-b"]) == {"a b": "a b", "A_B": "a-b"}
    assert matching(["x" * 64], ["x" * 70]) == {"x" * 64: "x" * 70}


def test_without_a_common_name_numbers_count_with_a_warning(tmp_path, image):
    path = seg(tmp_path / "seg.dcm", {1: "Leber", 2: "Milz"})
    found, warnings = dice(path, image(1, 2), labels={"liver": 1, "spleen": 2})
    assert found == {"liver": 1.0, "spleen": 1.0}
    assert any(
        "No name in the DICOM object is among the labels (liver, spleen)" in one and "1: Leber, 2: Milz" in one
        for one in warnings
    )


def test_some_names_without_a_label_are_refused(tmp_path, image):
    path = seg(tmp_path / "seg.dcm", {1: "rod", 2: "cube"})
    with pytest.raises(InputError, match=r"names cube, which the labels lack \(rod, ball\), though they have rod; add"):
        volseg.evaluate(path, image(1, 2), labels={"rod": 1, "ball": 2})


def test_a_segment_without_a_voxel_needs_no_label(tmp_path, image):
    masks = {**blocks(), 3: np.zeros(SHAPE, bool)}
    path = seg(tmp_path / "seg.dcm", {1: "rod", 2: "ball", 3: "cube"}, masks)
    assert dice(path, image(2, 1), labels={"rod": 2, "ball": 1})[0] == {"rod": 1.0, "ball": 1.0}


def test_two_objects_are_compared_by_names(tmp_path):
    one = seg(tmp_path / "one.dcm", {1: "rod", 2: "ball"})
    two = seg(tmp_path / "two.dcm", {1: "Ball", 2: "Rod"}, {1: blocks()[2], 2: blocks()[1]})
    found, warnings = dice(two, one)
    assert found == {"rod": 1.0, "ball": 1.0}
    assert not any("only one" in warning for warning in warnings)
    three = seg(tmp_path / "three.dcm", {1: "rod", 2: "cube"})
    found, warnings = dice(three, one)
    assert found == {"rod": 1.0, "ball": 0.0, "cube": 0.0}
    assert any("only one of the two names: ball, cube" in warning for warning in warnings)


def test_labels_within_others_are_the_same_on_both_sides(tmp_path):
    inner = blocks()[1]
    outer = inner.copy()
    outer[1:4, 1:5, 1:4] = True
    one = seg(tmp_path / "one.dcm", {1: "organ", 2: "lesion"}, {1: outer, 2: inner})
    two = seg(tmp_path / "two.dcm", {1: "lesion", 2: "organ"}, {1: inner, 2: outer})
    assert dice(one, two)[0] == {"organ": 1.0, "lesion": 1.0}
    alone = seg(tmp_path / "alone.dcm", {1: "organ"}, {1: outer})
    assert dice(alone, two)[0] == {"organ": 1.0, "lesion": 0.0}


def test_one_object_gives_its_names_to_the_values_of_an_image(tmp_path, image):
    found, warnings = dice(image(1, 9), seg(tmp_path / "seg.dcm", {1: "rod", 2: "ball"}))
    assert found == {"rod": 1.0, "ball": 0.0, "label_9": 0.0}
    assert any("Only the reference has names" in one and "1: rod, 2: ball" in one for one in warnings)


def test_the_record_of_convert_is_a_table_of_labels(tmp_path, ct):
    """Also where labels overlap within each other, so that a label has several values."""
    inner = blocks()[1]
    outer = inner.copy()
    outer[1:4, 1:5, 1:4] = True
    path = seg(tmp_path / "seg.dcm", {1: "organ", 2: "lesion"}, {1: outer, 2: inner})
    out = tmp_path / "out.nii.gz"
    record = volseg.convert(path, out, like=ct)
    assert {name: one["number"] for name, one in record["segments"].items()} == {"organ": 1, "lesion": 2}
    assert json.loads((tmp_path / "out.json").read_text())["labels"] == {"organ": [1, 2], "lesion": 2}
    for pair in ((path, out), (out, path), (path, path)):
        assert dice(*pair, labels=tmp_path / "out.json")[0] == {"organ": 1.0, "lesion": 1.0}


def test_objects_of_one_frame_of_reference_are_placed_without_a_warning(tmp_path, ct):
    rt = write(structures({1: [on_slice(OUTER, 1)]}, names={1: "rod"}), tmp_path / "rt.dcm")
    path = seg(tmp_path / "seg.dcm", {1: "rod"}, {1: blocks()[1]})
    assert dice(rt, path)[1] == []

    def elsewhere(data):
        data.FrameOfReferenceUID = "1.2.8"

    moved = seg(tmp_path / "apart" / "x" / "moved.dcm", {1: "rod"}, {1: blocks()[1]}, more=elsewhere)
    with pytest.raises(GridError, match="another frame of reference than"):
        volseg.evaluate(rt, moved)


def test_a_grid_of_fewer_slices_names_the_cure(tmp_path, image):
    """A SEG apart from its series lies on its own grid, which has the slices with frames alone."""
    path = seg(tmp_path / "apart" / "x" / "seg.dcm", {1: "rod"}, {1: blocks()[1]})
    record = volseg.convert(path, tmp_path / "own.nii.gz")
    assert any("covers only the slices" in one and "--like SCAN" in one for one in record["warnings"])
    with pytest.raises(GridError, match="convert that again with volseg convert --like SCAN"):
        volseg.evaluate(tmp_path / "own.nii.gz", image(1, 0))


def test_within_plain_labels_a_voxel_belongs_to_the_inner_one():
    own = Named({"organ": 1, "lesion": 2}, {"organ": (1, 2), "lesion": (2,)})
    array = np.array([0, 1, 2], np.uint8).reshape(3, 1, 1)
    found, _ = by_name(array, own, {"organ": (7,), "lesion": (300,)}, "it")
    assert found.ravel().tolist() == [0, 7, 300]
    assert found.dtype == np.uint16


def test_a_voxel_gets_the_value_that_its_regions_share():
    own = Named({"core": 1, "whole": 2}, {"core": (1,), "whole": (1, 2)})
    array = np.array([0, 1, 2], np.uint8).reshape(3, 1, 1)
    assert by_name(array, own, {"whole": (1, 2), "core": (2,)}, "it")[0].ravel().tolist() == [0, 2, 1]
    with pytest.raises(InputError, match="voxels that are whole alone, for which the labels have no value"):
        by_name(array, own, {"whole": (1, 2), "core": (2,), "rim": (1,)}, "it")


def test_the_names_of_labels_are_part_of_a_cache_key_of_dicom_labels(tmp_path):
    (tmp_path / "scan.nii.gz").write_bytes(b"scan")
    for label, expected in (("label.dcm", 2), ("label.nii.gz", 1)):
        (tmp_path / label).write_bytes(b"label")
        case = TrainingCase("case", (tmp_path / "scan.nii.gz",), tmp_path / label)
        plan = small_plan()
        renamed = tuple(label.model_copy(update={"name": f"other {label.name}"}) for label in plan.labels)
        plans = (plan, plan.model_copy(update={"labels": renamed}))
        assert len({cache_key(case, one) for one in plans}) == expected
