"""`volseg.convert`, and DICOM labels as references and training labels."""

import json
import shutil

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

import volseg
from tests.data.io.dicom.writers import CT, ORIGIN, affine_of, classic, stack, write, write_all
from tests.data.io.dicom_labels.writers import SHAPE, blocks, code, on_slice, segmentation, series, structures
from tests.pipeline import TINY
from volseg.api.describe import describe
from volseg.data.cases.dataset import open_dataset
from volseg.data.io.reading import read_label_of, read_scan
from volseg.errors import GridError, InputError, UsageError
from volseg.planning.fingerprint import take_fingerprint

AFFINE = np.array([[-1.5, 0.1, 0, 7], [0.1, 1.5, 0, -3], [0, 0, 2.5, 11], [0, 0, 0, 1.0]])
PICTURE = "1.2.840.10008.5.1.4.1.1.7"
OUTER = np.array([[0.5, 0.5], [5.5, 0.5], [5.5, 3.5], [0.5, 3.5]])


def scan(folder, dtype=np.int16, name="scan.nii.gz"):
    array = np.arange(6 * 5 * 4).reshape(6, 5, 4).astype(dtype)
    image = nibabel.Nifti1Image(array, AFFINE, dtype=dtype)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, folder / name)
    return folder / name, array


def values(path):
    if path.name.endswith((".nrrd", ".mha")):
        return sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T
    if path.name.endswith(".mgh"):
        # nibabel leaves such a file open.
        return np.asanyarray(nibabel.MGHImage.from_bytes(path.read_bytes()).dataobj)
    return np.asanyarray(nibabel.load(path).dataobj)


# ---- scans


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mgz", ".mgh", ".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64])
def test_a_scan_keeps_its_values_and_its_affine_in_every_format(tmp_path, suffix, dtype):
    path, array = scan(tmp_path, dtype)
    out = tmp_path / "out" / f"copy{suffix}"
    record = volseg.convert(path, out)
    found = values(out)
    assert np.array_equal(found, array)
    assert found.dtype.kind == ("f" if np.dtype(dtype).kind == "f" else found.dtype.kind) != "b"
    assert (found.dtype.kind == "f") == (np.dtype(dtype).kind == "f")
    np.testing.assert_allclose(read_scan(out).geometry.affine, AFFINE, atol=1e-4)
    assert json.loads((tmp_path / "out" / "copy.json").read_text()) == record
    assert set(record) == {"volseg_version", "input", "warnings"}
    assert [len(one["sha256"]) for one in record["input"]] == [64]


def test_values_that_a_format_cannot_hold_are_rejected(tmp_path):
    array = np.full((3, 3, 3), 2**40, np.int64)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4), dtype=np.int64), tmp_path / "a.nii")
    with pytest.raises(InputError, match=r"cannot be stored exactly as .mgz; write .nii.gz"):
        volseg.convert(tmp_path / "a.nii", tmp_path / "b.mgz")
    assert not (tmp_path / "b.json").exists()
    volseg.convert(tmp_path / "a.nii", tmp_path / "b.nrrd")
    assert np.array_equal(values(tmp_path / "b.nrrd"), array)


def test_scaled_values_are_float32_or_more_where_that_is_not_exact(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.full((3, 3, 3), 0.1), np.eye(4)), tmp_path / "a.nii")
    volseg.convert(tmp_path / "a.nii", tmp_path / "b.nii")
    assert values(tmp_path / "b.nii").dtype == np.float64
    data = classic(np.arange(24, dtype=np.int16).reshape(2, 3, 4), RescaleSlope="0.5", RescaleIntercept="-3")
    volseg.convert(write_all(tmp_path / "ct", data), tmp_path / "c.nii.gz")
    found = values(tmp_path / "c.nii.gz")
    assert found.dtype == np.float32
    assert np.array_equal(found, np.arange(24).reshape(2, 3, 4) * 0.5 - 3)


def test_a_series_a_constant_image_and_tilted_slices_are_converted_as_they_are(tmp_path):
    positions = stack(4) + np.arange(4)[:, None] * np.array([0, 0.7, 0])
    write_all(tmp_path / "ct", classic(np.full((7, 5, 4), 9, np.int16), positions, sop_class=CT))
    record = volseg.convert(tmp_path / "ct", tmp_path / "out.nii.gz")
    found = nibabel.load(tmp_path / "out.nii.gz")
    assert np.array_equal(np.asanyarray(found.dataobj), np.full((7, 5, 4), 9))
    assert found.get_data_dtype() == np.int16
    np.testing.assert_allclose(found.affine, affine_of(positions), atol=1e-4)
    assert record["series"] == {"uid": "1.2.3.4", "number": "7", "modality": "CT"}
    assert [(one["series"], one["instances"]) for one in record["input"]] == [("1.2.3.4", 4)]


def test_a_volume_and_a_series_are_chosen(tmp_path):
    array = np.arange(6 * 5 * 4 * 2, dtype=np.int16).reshape(6, 5, 4, 2)
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), tmp_path / "a.nii")
    volseg.convert(tmp_path / "a.nii", tmp_path / "b.nii", volume=2)
    assert np.array_equal(values(tmp_path / "b.nii"), array[..., 1])
    write_all(tmp_path / "two" / "a", classic(array[..., 0], SeriesNumber="3", SeriesInstanceUID="1.3"))
    write_all(tmp_path / "two" / "b", classic(array[..., 1], SeriesNumber="4", SeriesInstanceUID="1.4"))
    volseg.convert(tmp_path / "two", tmp_path / "c.nii", series=4)
    assert np.array_equal(values(tmp_path / "c.nii"), array[..., 1])


def test_a_scan_of_another_geometry_than_like_is_rejected(tmp_path):
    path, array = scan(tmp_path)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "other.nii")
    with pytest.raises(GridError, match="has another geometry than the scan of --like"):
        volseg.convert(path, tmp_path / "out.nii", like=tmp_path / "other.nii")


def test_outputs_that_exist_or_are_inputs_or_no_images_are_rejected_before_any_work(tmp_path):
    path, _ = scan(tmp_path)
    volseg.convert(path, tmp_path / "out.nii")
    with pytest.raises(UsageError, match=r"out.nii exists already. Give another --output, or add --overwrite"):
        volseg.convert(path, tmp_path / "out.nii")
    volseg.convert(path, tmp_path / "out.nii", overwrite=True)
    with pytest.raises(UsageError, match="would overwrite the scan of that name"):
        volseg.convert(path, path, overwrite=True)
    with pytest.raises(UsageError, match="would overwrite the scan of that name"):
        volseg.convert(path, tmp_path / "out.nii", like=tmp_path / "out.nii", overwrite=True)
    for name in ("out.dcm", "out", "out.mhd"):
        with pytest.raises(UsageError, match=r"can be written as .nii.gz"):
            volseg.convert(path, tmp_path / name)
    with pytest.raises(InputError, match="does not exist"):
        volseg.convert(tmp_path / "none.nii", tmp_path / "new.nii")


# ---- labels


def test_a_segmentation_with_its_record_and_nothing_of_the_patient(tmp_path):
    path = write(segmentation(blocks()), tmp_path / "in" / "seg.dcm")
    record = volseg.convert(path, tmp_path / "out.nii.gz")
    text = (tmp_path / "out.json").read_text()
    assert json.loads(text) == record
    assert "Secret" not in text
    assert "seg.dcm" not in text
    assert record["input"] == {
        "kind": "DICOM SEG", "type": "BINARY", "sop_instance_uid": "1.2.66", "series_uid": "1.2.66.9",
        "grid_of_series": None,
    }  # fmt: skip
    assert record["labels"] == {"Part 1": 1, "Part 2": 2}
    one = record["segments"]["Part 1"]
    assert (one["number"], one["voxels"], one["reason"]) == (1, blocks()[1].sum(), None)
    assert one["volume_ml"] == pytest.approx(blocks()[1].sum() * 0.5 * 0.75 * 3 / 1000)
    assert one["codes"]["type"]["meaning"] == "Liver"
    # Its own grid begins at the first frame, which is the second slice of the scan.
    found = nibabel.load(tmp_path / "out.nii.gz")
    assert found.shape == (7, 5, 3)
    assert found.get_data_dtype() == np.uint8
    np.testing.assert_allclose(found.affine[:3, 3], [-ORIGIN[0], -ORIGIN[1], ORIGIN[2] + 3], atol=1e-4)


def test_labels_on_the_grid_of_a_nifti_scan_have_its_header(tmp_path):
    ct = series(tmp_path / "ct")
    volseg.convert(ct, tmp_path / "ct.nii.gz")
    path = write(segmentation(blocks()), tmp_path / "seg.dcm")
    record = volseg.convert(path, tmp_path / "labels.nii.gz", like=tmp_path / "ct.nii.gz")
    found, image = nibabel.load(tmp_path / "labels.nii.gz"), nibabel.load(tmp_path / "ct.nii.gz")
    assert np.array_equal(np.asanyarray(found.dataobj), sum(n * mask.astype(np.uint8) for n, mask in blocks().items()))
    for field in ("srow_x", "srow_y", "srow_z", "quatern_b", "sform_code", "qform_code", "xyzt_units"):
        assert np.array_equal(found.header[field], image.header[field])
    assert (
        record["warnings"][0]
        == "Labels are placed by their coordinates, because the image that they are placed on states no frame of "
        "reference to check."
    )


def test_overlapping_segments_are_regions_that_evaluate_reads(tmp_path):
    """Each is compared as the union of its values, so the file is equal to itself, and to the masks."""
    one, two = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    one[:4, :, 1], two[2:, :, 1] = True, True
    path = write(segmentation({1: one, 2: two}), tmp_path / "seg.dcm")
    record = volseg.convert(path, tmp_path / "out.nii.gz", like=series(tmp_path / "ct"))
    assert record["labels"] == {"Part 2": [2, 3], "Part 1": [1, 3]}
    assert record["regions_class_order"] == [2, 1]
    found = values(tmp_path / "out.nii.gz")
    assert np.array_equal(np.isin(found, [1, 3]), one)
    assert np.array_equal(np.isin(found, [2, 3]), two)
    report = volseg.evaluate(tmp_path / "out.nii.gz", tmp_path / "out.nii.gz", labels=tmp_path / "out.json")
    assert report["mean"]["foreground_dice"] == 1.0
    assert report["cases"][0]["labels"]["Part 1"]["reference_ml"] == pytest.approx(one.sum() * 0.5 * 0.75 * 3 / 1000)


def test_a_folder_and_a_zip_of_one_structure_set(tmp_path):
    ct = series(tmp_path / "ct")
    write(structures({4: [on_slice(OUTER, 1)]}), tmp_path / "rt" / "anything")
    shutil.make_archive(str(tmp_path / "rt"), "zip", tmp_path / "rt")
    for source, like in ((tmp_path / "rt", None), (tmp_path / "rt", ct), (tmp_path / "rt.zip", ct)):
        record = volseg.convert(source, tmp_path / "out.mha", like=like, overwrite=True)
        assert record["labels"] == {"Part 4": 4}
        assert np.argwhere(values(tmp_path / "out.mha") == 4).tolist() == [
            [i, j, 1] for i in range(1, 6) for j in range(1, 4)
        ]


# ---- evaluate


@pytest.fixture
def prediction(tmp_path):
    """A prediction of one of two blocks on the grid of a series."""
    ct = series(tmp_path / "ct")
    write(segmentation(blocks()), tmp_path / "all.dcm")
    write(segmentation({1: blocks()[1]}), tmp_path / "one.dcm")
    (tmp_path / "predictions").mkdir()
    volseg.convert(tmp_path / "one.dcm", tmp_path / "predictions" / "scan.nii.gz", like=ct)
    return tmp_path / "predictions" / "scan.nii.gz"


@pytest.mark.parametrize("place", ["refs/whatever.dcm", "refs/scan.seg.dcm", "refs/scan.dcm", "refs/scan/seg.dcm"])
def test_a_reference_may_be_a_segmentation(tmp_path, prediction, place):
    write(segmentation(blocks()), tmp_path / place)
    pairs = [(prediction, tmp_path / place), (prediction, tmp_path / "refs")]
    if "whatever" not in place:
        pairs.append((prediction.parent, tmp_path / "refs"))
    for predicted, reference in pairs:
        report = volseg.evaluate(predicted, reference)
        case = report["cases"][0]
        assert (case["name"], case["labels"]["Part 1"]["dice"], case["labels"]["Part 2"]["dice"]) == (
            "scan",
            1.0,
            0.0,
        )
        assert any("placed by their coordinates" in warning for warning in report["warnings"])


def test_a_reference_may_be_a_structure_set_without_its_series(tmp_path, prediction):
    write(structures({1: [on_slice(OUTER, 1)]}), tmp_path / "a" / "b" / "rt.dcm")
    report = volseg.evaluate(prediction, tmp_path / "a" / "b")
    both = (blocks()[1][1:6, 1:4, 1]).sum()
    assert report["cases"][0]["labels"]["Part 1"]["dice"] == pytest.approx(2 * both / (blocks()[1].sum() + 15))


def test_a_prediction_may_be_a_segmentation_too(tmp_path, prediction):
    report = volseg.evaluate(tmp_path / "one.dcm", prediction)
    assert report["mean"]["foreground_dice"] == 1.0
    assert volseg.evaluate(tmp_path / "all.dcm", tmp_path / "all.dcm")["mean"]["foreground_dice"] == 1.0


def test_the_dicom_outputs_of_a_case_are_not_further_cases(tmp_path, prediction):
    write(segmentation(blocks()), prediction.parent / "scan.seg.dcm")
    assert [case["name"] for case in volseg.evaluate(prediction.parent, prediction.parent)["cases"]] == ["scan"]


def test_overlapping_segments_are_rejected_as_a_reference(tmp_path, prediction):
    crossing = {1: blocks()[1], 2: np.roll(blocks()[1], 1, axis=0)}
    write(segmentation(crossing), tmp_path / "both.dcm")
    with pytest.raises(InputError, match=r"labels overlap, .* Part 1 and Part 2 .*volseg convert writes"):
        volseg.evaluate(prediction, tmp_path / "both.dcm")


# ---- training


@pytest.fixture
def dataset(tmp_path):
    """Two cases in the plain layout, a SEG and an RTSTRUCT of one mask, apart from their series; and the mask."""
    shape = (18, 18, 17)
    ct, folder = series(tmp_path / "ct", shape), tmp_path / "data"
    volseg.convert(ct, folder / "images" / "a.nii.gz")
    image = nibabel.load(folder / "images" / "a.nii.gz")
    other = nibabel.Nifti1Image(np.asanyarray(image.dataobj)[::-1], image.affine, image.header)
    nibabel.save(other, folder / "images" / "b.nii.gz")
    mask = np.zeros(shape, bool)
    mask[1:6, 1:4, 1] = True
    write(segmentation({1: mask}), folder / "labels" / "a.seg.dcm")
    write(structures({1: [on_slice(OUTER, 1)]}), folder / "labels" / "b.dcm")
    return folder, mask


def test_training_labels_in_dicom_are_found_by_name(dataset):
    assert "Part 1" in volseg.plan(dataset[0])


@pytest.mark.usefixtures("one_thread")
def test_training_labels_may_be_dicom(tmp_path, dataset):
    """Trained on one case, validated on the other."""
    folder, mask = dataset
    labels = {"a": "a.seg.dcm", "b": "b.dcm"}
    training = [{"image": f"images/{name}.nii.gz", "label": f"labels/{label}"} for name, label in labels.items()]
    document = {"labels": {"0": "background", "1": "box"}, "training": training}
    (folder / "dataset.json").write_text(json.dumps(document))
    run = volseg.train(folder, tmp_path / "run", folds=2, steps=2, overrides=TINY, device="cpu")
    found = json.loads((run / "validation.json").read_text())["cases"][0]["labels"]["box"]
    assert found["reference_ml"] == pytest.approx(mask.sum() * 0.5 * 0.75 * 3 / 1000)


def test_training_labels_that_do_not_belong_to_their_image_are_listed_as_problems(tmp_path):
    ct = series(tmp_path / "ct")
    for name in ("a", "b"):
        volseg.convert(ct, tmp_path / "data" / "images" / f"{name}.nii.gz")
        moved = structures({1: [on_slice(OUTER, 1) + np.array([0, 0, 1.4])]})
        write(moved, tmp_path / "data" / "labels" / f"{name}.dcm")
    (tmp_path / "data" / "labels.json").write_text('{"box": 1}')
    with pytest.raises(InputError, match=r"a: geometry differs: .*contours lie between the slices") as caught:
        volseg.plan(tmp_path / "data")
    assert len(caught.value.problems) == 3


# ---- folders of several kinds, codes, the grid of the series beside


def picture(path, **options):
    return write(
        classic(np.zeros((4, 3, 1), np.uint8), sop_class=PICTURE, ImagePositionPatient=None, **options)[0], path
    )


def test_a_folder_of_results_asks_for_one_of_its_files(tmp_path):
    folder = tmp_path / "results"
    write(segmentation(blocks()), folder / "a.seg.dcm")
    picture(folder / "a.sc.dcm")
    scan(folder)
    assert volseg.convert(folder, tmp_path / "one.nii.gz")["input"]["kind"] == "DICOM SEG"
    write(structures({1: [on_slice(OUTER, 1)]}), folder / "a.rtstruct.dcm")
    with pytest.raises(
        InputError,
        match=r"contains 2 segmentations or structure sets: file 1 of 4 by name \(RTSTRUCT\), file 3 of 4 by name "
        r"\(DICOM SEG\); give one file \(--debug shows the names\)",
    ):
        volseg.convert(folder, tmp_path / "two.nii.gz")


def test_a_picture_is_no_scan(tmp_path):
    picture(tmp_path / "sc" / "a.dcm")
    with pytest.raises(InputError, match=r"is a picture \(Secondary Capture\) and no scan"):
        volseg.convert(tmp_path / "sc", tmp_path / "out.nii.gz")


def test_a_series_with_labels_says_that_they_are_there(tmp_path):
    ct = series(tmp_path / "ct")
    write(segmentation(blocks()), ct / "zz.seg.dcm")
    record = volseg.convert(ct, tmp_path / "out.nii.gz")
    assert record["warnings"][-1] == (
        "Labels are there as well: file 5 of 5 by name (DICOM SEG); give such a file to convert them."
    )
    assert record["input"][0]["kind"] == "dicom"


def test_codes_have_their_modifiers(tmp_path):
    def change(data):
        kind = data.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = code("255549009", "SCT", "Anterior")
        data.SegmentSequence[1].AnatomicRegionSequence = code("64033007", "SCT", "Kidney")
        data.SegmentSequence[1].AnatomicRegionSequence[0].AnatomicRegionModifierSequence = code(
            "7771000", "SCT", "Left"
        )

    path = write(segmentation(blocks(), change=change), tmp_path / "seg.dcm")
    found = volseg.convert(path, tmp_path / "out.nii.gz")["segments"]
    assert found["Part 1"]["codes"]["modifier"] == {"value": "255549009", "scheme": "SCT", "meaning": "Anterior"}
    assert "modifier" not in found["Part 2"]["codes"]
    assert found["Part 2"]["codes"]["region"]["meaning"] == "Kidney"
    assert found["Part 2"]["codes"]["region_modifier"]["meaning"] == "Left"


def test_a_segmentation_lies_on_the_grid_of_the_series_beside_it(tmp_path):
    """It covers fewer slices than the series."""
    path = write(segmentation({1: blocks()[1]}), tmp_path / "results" / "seg.dcm")
    alone = volseg.convert(path, tmp_path / "alone" / "out.nii.gz")
    assert alone["input"]["grid_of_series"] is None
    assert any("no series that it belongs to lies beside it" in one for one in alone["warnings"])
    assert values(tmp_path / "alone" / "out.nii.gz").shape == (7, 5, 2)
    ct = series(tmp_path / "ct")
    found = volseg.convert(path, tmp_path / "out.nii.gz")
    assert found["input"]["grid_of_series"] == "1.2.3.4"
    assert found["warnings"] == []
    assert np.array_equal(values(tmp_path / "out.nii.gz"), blocks()[1])
    sorted(ct.iterdir())[1].unlink()
    broken = volseg.convert(path, tmp_path / "out.nii.gz", overwrite=True)
    assert any("the series beside it cannot be used" in one for one in broken["warnings"])


@pytest.mark.usefixtures("one_thread")
def test_training_labels_in_dicom_have_their_values_by_name(dataset):
    """Part 1 has number 1, where the dataset has something else."""
    (dataset[0] / "labels.json").write_text('{"box": 1, "part_1": 2}')
    case = open_dataset(dataset[0]).cases[0]
    table = open_dataset(dataset[0]).labels.table
    found = read_label_of(case.label, case.images[0], {1, 2}, table)
    assert np.array_equal(found.channels[0], 2 * dataset[1])
    cases = take_fingerprint(open_dataset(dataset[0])).cases
    assert [(one.volumes_ml["box"], one.volumes_ml["part_1"] > 0) for one in cases] == [(0, True)] * 2


def test_info_describes_labels(tmp_path):
    path = write(segmentation(blocks()), tmp_path / "seg.dcm")
    found = describe(path)
    assert (found["what"], found["type"], found["frame_of_reference"]) == ("DICOM SEG", "BINARY", "1.2.9")
    assert found["labels"] == "1 Part 1 (Liver, 2 frames); 2 Part 2 (Liver, 2 frames)"
    assert (found["of_series"], found["of_images"]) == ("1.2.3.4", 4)
    write(structures({4: [on_slice(OUTER, 1)]}), tmp_path / "rt" / "rt.dcm")
    found = describe(tmp_path / "rt")
    assert (found["what"], found["labels"]) == ("RTSTRUCT", "4 Part 4 (1 contour)")
