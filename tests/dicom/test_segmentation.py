"""DICOM Segmentation objects: segments, frames, pixels and references, by pydicom, highdicom and dcmqi."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pytest

from tests.data.io.dicom.writers import ENHANCED_MR, MR, ROTATED, affine_of, classic, enhanced, stack
from tests.dicom.results import KIDNEY, LABELS, SHA256, about, frames, made, series, some_labels, written
from volseg.config import Label
from volseg.dicom import segmentation as module
from volseg.dicom.image.frames import binary_frames
from volseg.dicom.segmentation import segmentation
from volseg.errors import InputError
from volseg.report.colours import label_colours

BINARY, LABELMAP = {}, {"labelmap": True}
READER = Path(sys.executable).parent / "segimage2itkimage"
TILTED = stack(4) + np.outer(np.arange(4), [0.0, 0.8, 0.0])
UNEVEN = stack(4) + np.outer([0.0, 0.1, -0.1, 0.0], [0.0, 0.0, 1.0])


def expected_frames(labels, positions, parts):
    """By segment number and position: the pixels of each segment on each slice that has it."""
    return {
        (number, tuple(positions[k])): np.isin(labels[:, :, k].T, values)
        for number, values in parts.items()
        for k in range(labels.shape[2])
        if np.isin(labels[:, :, k], values).any()
    }


def assert_frames(data, expected):
    found = {(number, tuple(np.round(place, 6))): plane for number, place, plane in frames(data)}
    assert len(found) == data.NumberOfFrames
    assert found.keys() == {(number, tuple(np.round(place, 6))) for number, place in expected}
    for (number, place), plane in expected.items():
        assert np.array_equal(found[number, tuple(np.round(place, 6))], plane)


@pytest.mark.parametrize(
    ("options", "choice"),
    [
        ({}, {}),
        ({"axes": ROTATED}, {}),
        ({"kind": enhanced}, {}),
        ({"positions": UNEVEN}, {}),
        ({"positions": TILTED}, {"untilt": True}),
        ({"positions": stack(4)[::-1]}, {}),
    ],
    ids=["axial", "oblique", "enhanced", "uneven", "tilted", "backwards"],
)
def test_frames_hold_the_segments_at_the_positions_of_the_slices(tmp_path, options, choice):
    labels = some_labels()
    path = series(tmp_path / "series", **options)
    what = about(path, labels, **choice)
    data = written(tmp_path / "seg.dcm", what, labels)
    positions = sorted(map(tuple, options.get("positions", stack(4, options.get("axes", np.eye(3)[:, :2])))))
    assert sorted(map(tuple, np.round(what.source.positions, 6))) == [tuple(np.round(one, 6)) for one in positions]
    assert_frames(data, expected_frames(labels, what.source.positions, {1: [1], 2: [7]}))


@pytest.mark.parametrize("shape", [(6, 5, 4), (8, 8, 3), (3, 1, 5), (7, 3, 9), (2, 1, 1)])
def test_bits_are_packed_without_gaps_whatever_the_size_of_a_slice(tmp_path, shape):
    labels = np.random.default_rng(1).integers(0, 3, shape).astype(np.uint8)
    labels[0, 0, 0] = 1
    names = (Label(name="a", value=1), Label(name="b", value=2))
    data = made(tmp_path, labels, names)
    positions = stack(shape[2])
    assert_frames(data, expected_frames(labels, positions, {1: [1], 2: [2]}))
    assert len(data.PixelData) == 2 * -(-data.NumberOfFrames * shape[0] * shape[1] // 16)


def test_a_label_map_keeps_the_values(tmp_path):
    labels = some_labels()
    data = made(tmp_path, labels, seg=LABELMAP)
    assert (data.SOPClassUID, data.SegmentationType, data.BitsAllocated) == (module.LABELMAP.sop_class, "LABELMAP", 8)
    assert [one.SegmentNumber for one in data.SegmentSequence] == [0, 1, 7]
    planes = {place: plane for _, place, plane in frames(data)}
    assert planes.keys() == {tuple(place) for place in stack(4)[1:]}
    assert all(np.array_equal(planes[tuple(stack(4)[k])], labels[:, :, k].T) for k in (1, 2, 3))


@pytest.mark.parametrize(("largest", "bits"), [(255, 8), (256, 16), (40000, 16)])
def test_a_label_map_has_the_bits_that_its_labels_need(tmp_path, largest, bits):
    names = (KIDNEY, Label(name="far", value=largest))
    labels = some_labels(values=(1, largest))
    data = made(tmp_path, labels, names, seg=LABELMAP | {"empty_frames": True})
    assert (data.BitsAllocated, data.BitsStored, data.HighBit) == (bits, bits, bits - 1)
    assert ("OB" if bits == 8 else "OW") == data["PixelData"].VR
    assert np.array_equal(data.pixel_array.transpose(2, 1, 0), labels)


def test_binary_segments_are_numbered_without_gaps_whatever_the_values(tmp_path):
    names = (Label(name="a", value=3), Label(name="b", value=40000), Label(name="c", value=300))
    data = made(tmp_path, some_labels(values=(3, 40000, 300)), names)
    assert [(one.SegmentNumber, one.SegmentLabel) for one in data.SegmentSequence] == [(1, "a"), (2, "b"), (3, "c")]
    assert [one.SegmentDescription for one in data.SegmentSequence] == [
        f"Voxels of value {value} in the label image" for value in (3, 40000, 300)
    ]
    assert {number for number, _, plane in frames(data) if plane.any()} == {1, 2, 3}


REGIONS = (Label(name="whole", value=1, parts=(1, 2)), Label(name="core", value=2, parts=(2,)))


def test_regions_are_segments_that_overlap(tmp_path):
    labels = some_labels(values=(1, 2))
    data = made(tmp_path, labels, REGIONS)
    assert data.SegmentsOverlap == "YES"
    assert data.SegmentSequence[0].SegmentDescription.startswith("Region of the values 1, 2")
    assert_frames(data, expected_frames(labels, stack(4), {1: [1, 2], 2: [2]}))


def test_regions_in_a_label_map_are_as_stored_and_say_so(tmp_path):
    labels = some_labels(values=(1, 2))
    data = made(tmp_path, labels, REGIONS, seg=LABELMAP)
    assert data.SegmentsOverlap == "NO"
    words = data.SegmentSequence[1].SegmentDescription
    assert words == "Voxels of value 1 in the label image, part of a region that is the values 1, 2"
    assert np.array_equal(data.pixel_array.transpose(2, 1, 0), labels[:, :, 1:])


def test_a_label_without_voxels_is_a_segment_without_frames(tmp_path):
    data = made(tmp_path, some_labels(values=(1,)))
    assert [one.SegmentNumber for one in data.SegmentSequence] == [1, 2]
    assert {number for number, _, _ in frames(data)} == {1}


@pytest.mark.parametrize(("options", "count"), [(BINARY, 8), (LABELMAP, 4)])
def test_empty_frames_are_kept_if_asked_for(tmp_path, options, count):
    assert made(tmp_path, seg=options | {"empty_frames": True}).NumberOfFrames == count


def test_a_single_label_names_its_segment_in_each_frame(tmp_path):
    data = made(tmp_path, some_labels(values=(1,)), (KIDNEY,))
    assert [number for number, _, _ in frames(data)] == [1, 1]
    assert "SegmentIdentificationSequence" not in data.SharedFunctionalGroupsSequence[0]


def test_dimension_indices_count_segments_and_slices_with_labels(tmp_path):
    data = made(tmp_path)
    found = [list(one.FrameContentSequence[0].DimensionIndexValues) for one in data.PerFrameFunctionalGroupsSequence]
    assert found == [[1, 1], [1, 2], [2, 1], [2, 2], [2, 3]]


def test_segments_say_what_they_are_and_who_made_them(tmp_path):
    data = made(tmp_path)
    kidney, other = data.SegmentSequence
    assert kidney.SegmentedPropertyTypeCodeSequence[0].CodeValue == "64033007"
    side = kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert (side.CodeValue, side.CodingSchemeDesignator) == ("7771000", "SCT")
    assert other.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "99VOLSEG"
    assert data.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99VOLSEG"
    for one in (kidney, other):
        assert (one.SegmentAlgorithmType, one.SegmentAlgorithmName) == ("AUTOMATIC", "model")
        algorithm = one.SegmentationAlgorithmIdentificationSequence[0]
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("model", SHA256)
    assert len({one.TrackingUID for one in (kidney, other)}) == 2
    assert other.TrackingID == "model: something else"


def test_an_alteration_names_the_structure_that_it_lies_in(tmp_path):
    data = made(tmp_path, some_labels(values=(1,)), (Label(name="kidney_cyst_left", value=1),))
    (region,) = data.SegmentSequence[0].AnatomicRegionSequence
    assert (region.CodeValue, region.AnatomicRegionModifierSequence[0].CodeValue) == ("64033007", "7771000")
    assert "CodingSchemeIdentificationSequence" not in data


def test_odd_names_fit_their_attributes(tmp_path):
    name = "back\\slash\nand a very long name that no attribute of a DICOM object could hold " * 2
    data = made(tmp_path, some_labels(values=(1,)), (Label(name=name, value=1),))
    label = data.SegmentSequence[0].SegmentLabel
    assert isinstance(label, str)
    assert label.startswith("back slash and a very")
    assert len(label) == 64


def rgb_of(value):
    return highdicom.color.CIELabColor.from_dicom_value(tuple(value)).to_rgb()


def test_colours_are_those_of_the_preview(tmp_path):
    names = (KIDNEY, Label(name="other", value=7, colour=(10, 200, 30)))
    data = made(tmp_path, names=names)
    for segment, colour in zip(data.SegmentSequence, label_colours(names), strict=True):
        assert np.abs(np.subtract(rgb_of(segment.RecommendedDisplayCIELabValue), colour)).max() <= 1


@pytest.mark.parametrize("kind", [classic, enhanced])
def test_references_are_the_true_files_and_frames(tmp_path, kind):
    data = made(tmp_path, kind=kind)
    (listed,) = data.ReferencedSeriesSequence
    assert listed.SeriesInstanceUID == "1.2.3.4"
    files = [f"1.2.3.4.{k + 1}" for k in range(4 if kind is classic else 1)]
    sop_class = MR if kind is classic else ENHANCED_MR
    for items in (listed.ReferencedInstanceSequence, data.SourceImageSequence):
        found = [(one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID) for one in items]
        assert found == [(sop_class, one) for one in files]
    planes = {tuple(np.round(place, 6)): k for k, place in enumerate(stack(4))}
    for group in data.PerFrameFunctionalGroupsSequence:
        k = planes[tuple(np.round(list(map(float, group.PlanePositionSequence[0].ImagePositionPatient)), 6))]
        (image,) = group.DerivationImageSequence[0].SourceImageSequence
        assert image.ReferencedSOPClassUID == sop_class
        assert image.ReferencedSOPInstanceUID == (files[k] if kind is classic else files[0])
        assert image.get("ReferencedFrameNumber") == (None if kind is classic else k + 1)


def test_geometry_and_frame_of_reference_are_those_of_the_source(tmp_path):
    data = made(tmp_path, axes=ROTATED)
    shared = data.SharedFunctionalGroupsSequence[0]
    measures = shared.PixelMeasuresSequence[0]
    np.testing.assert_allclose(
        list(map(float, shared.PlaneOrientationSequence[0].ImageOrientationPatient)), ROTATED.T.ravel(), atol=1e-8
    )
    assert list(map(float, measures.PixelSpacing)) == [0.75, 0.5]
    assert float(measures.SpacingBetweenSlices) == pytest.approx(3)
    assert (data.FrameOfReferenceUID, data.StudyInstanceUID) == ("1.2.9", "1.2.3")
    assert not data.PositionReferenceIndicator
    assert not data.ContentCreatorName


def test_tilted_slices_lie_apart_along_their_normal(tmp_path):
    data = made(tmp_path, positions=TILTED, choice={"untilt": True})
    assert float(data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices) == 3


def test_a_source_without_frame_of_reference_gets_a_derived_one(tmp_path):
    path = series(tmp_path / "series", FrameOfReferenceUID=None)
    labels = some_labels()
    what = about(path, labels)
    data = written(tmp_path / "seg.dcm", what, labels)
    other = written(tmp_path / "other.dcm", about(path, labels, sha256="f" * 64), labels)
    assert data.FrameOfReferenceUID == other.FrameOfReferenceUID
    assert data.FrameOfReferenceUID.startswith("2.25.")
    assert "states no FrameOfReferenceUID" in what.source.warnings[0]
    assert about(series(tmp_path / "stated"), labels).source.warnings == ()


def test_loss_by_compression_of_any_slice_is_carried(tmp_path):
    def change(k, data):
        if k == 2:
            data.LossyImageCompression, data.LossyImageCompressionRatio = "01", ["10", "2.5"]
            data.LossyImageCompressionMethod = ["ISO_10918_1", "ISO_15444_1"]

    data = made(tmp_path, change=change)
    assert data.LossyImageCompression == "01"
    assert list(map(float, data.LossyImageCompressionRatio)) == [10, 2.5]
    assert list(data.LossyImageCompressionMethod) == ["ISO_10918_1", "ISO_15444_1"]
    assert made(tmp_path / "other").LossyImageCompression == "00"


def test_more_frames_than_an_object_holds_are_refused():
    labels = np.ones((700, 100, 2), dtype=np.uint8)
    with pytest.raises(InputError, match=r"65536 frames, 0\.0 GiB of pixels; expected at most 65535 frames"):
        module._check_size(65536, 1)
    with pytest.raises(InputError, match=r"40000 frames, 4\.7 GiB.*dicom-seg:labelmap"):
        module._check_size(40000, 125000)
    with pytest.raises(InputError, match="frames"):
        binary_frames(labels, [(1,)] * 200, True, module._check_size)


def test_a_label_map_is_suggested_for_many_labels_once(tmp_path, caplog):
    names = [Label(name=f"label {value}", value=value) for value in range(1, 22)]
    labels = some_labels(values=(1, 21))
    path = series(tmp_path / "series")
    module._suggest_labelmap.cache_clear()
    with caplog.at_level("INFO"):
        for count, options in ((20, {}), (21, LABELMAP), (21, {}), (21, {})):
            segmentation(labels, about(path, labels, names[-count:]), **options)
    assert [one.message for one in caplog.records if one.name.startswith("volseg")] == [
        "model has 21 labels: dicom-seg:labelmap is smaller and opens faster, where viewers know it"
    ]


@pytest.mark.parametrize("options", [BINARY, LABELMAP])
@pytest.mark.parametrize("kind", [classic, enhanced])
def test_highdicom_reads_the_same_voxels(tmp_path, options, kind):
    labels = some_labels()
    made(tmp_path, labels, kind=kind, axes=ROTATED, seg=options | {"empty_frames": True})
    found = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True, relabel=False)
    values = np.array([0, 1, 7] if options is BINARY else range(8), dtype=np.uint8)
    ours = affine_of(stack(4, ROTATED), ROTATED)
    onto = np.linalg.inv(ours) @ (np.diag([-1.0, -1, 1, 1]) @ found.affine)
    index = np.argwhere(found.array)
    there = np.rint(index @ onto[:3, :3].T + onto[:3, 3]).astype(int)
    np.testing.assert_allclose(index @ onto[:3, :3].T + onto[:3, 3], there, atol=1e-4)
    assert len(there) == np.count_nonzero(labels)
    assert np.array_equal(values[found.array[tuple(index.T)]], labels[tuple(there.T)])


@pytest.mark.skipif(not READER.exists(), reason="dcmqi is not installed")
@pytest.mark.parametrize("options", [BINARY, LABELMAP])
def test_dcmqi_reads_the_same_voxels_and_colours(tmp_path, options):
    labels = some_labels(shape=(9, 8, 6))
    made(tmp_path, labels, axes=ROTATED, seg=options)
    out = tmp_path / "out"
    out.mkdir()
    command = [READER, "--inputDICOM", tmp_path / "seg.dcm", "--outputDirectory", out, "-t", "nii"]
    subprocess.run(command, check=True, capture_output=True)
    affine = affine_of(stack(6, ROTATED), ROTATED)
    document = json.loads((out / "meta.json").read_text())
    listed = [one for group in document["segmentAttributes"] for one in group if one["labelID"]]
    for one, (label, colour) in zip(listed, zip(LABELS, label_colours(LABELS), strict=True), strict=True):
        assert one["SegmentLabel"] == label.name
        assert np.abs(np.subtract(one["recommendedDisplayRGBValue"], colour)).max() <= 1
    values = np.array([0, 1, 7] if options is BINARY else range(8))
    seen = np.zeros_like(labels)
    for path in out.glob("*.nii.gz"):
        image = nibabel.load(path)
        index = np.argwhere(np.asanyarray(image.dataobj))
        there = np.linalg.inv(affine) @ image.affine @ np.c_[index, np.ones(len(index))].T
        np.testing.assert_allclose(there, np.rint(there), atol=1e-3)
        seen[tuple(np.rint(there[:3]).astype(int))] = values[np.asanyarray(image.dataobj)[tuple(index.T)]]
    assert np.array_equal(seen, labels)


STUDY = {"PatientID": "P", "StudyID": "S", "StudyDate": "20200101", "StudyTime": "120000"}


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dicom3tools is not installed")
@pytest.mark.parametrize("kind", [classic, enhanced])
@pytest.mark.parametrize("labels", [LABELS, (KIDNEY,), REGIONS], ids=["two", "one", "regions"])
def test_dciodvfy_finds_nothing_but_our_own_scheme(tmp_path, kind, labels):
    made(tmp_path, some_labels(values=[label.value for label in labels]), labels, kind=kind, **STUDY)
    found = subprocess.run(["dciodvfy", tmp_path / "seg.dcm"], capture_output=True, text=True, check=False)
    lines = {line for line in found.stderr.splitlines() if line.strip() not in ("", "Segmentation")}
    # The program knows the schemes of the standard; one that begins with 99 is private (PS3.3 8.2).
    own = "Warning - Unrecognized defined term <99VOLSEG> for value 1 of attribute <Coding Scheme Designator>"
    assert found.returncode == 0
    assert lines == ({own} if labels != (KIDNEY,) else set())
