"""DICOM segmentations: their voxels, their values, and where they lie."""

import highdicom
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from tests.data.io.dicom.writers import CT, ROTATED, STRAIGHT, affine_of, classic, put, stack, write
from tests.data.io.dicom_labels.writers import SHAPE, blocks, read_labels, segmentation, segments, series
from volseg.data.io.dicom_labels.placing import target_series
from volseg.data.io.dicom_labels.reader import read_dicom_labels
from volseg.errors import GridError, InputError


def joined(masks):
    return sum(number * mask.astype(np.uint8) for number, mask in masks.items())


@pytest.mark.parametrize("axes", [STRAIGHT, ROTATED], ids=["straight", "oblique"])
@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_the_voxels_on_the_grid_of_the_series(tmp_path, kind, axes):
    found = read_labels(segmentation(blocks(), kind, axes), tmp_path, series(tmp_path / "ct", axes=axes))
    assert np.array_equal(found.merged.array, joined(blocks()))
    assert found.merged.array.dtype == np.uint8
    np.testing.assert_allclose(found.geometry.affine, affine_of(stack(4, axes), axes), atol=1e-5)
    assert {part.name: part.number for part in found.parts} == {"Part 1": 1, "Part 2": 2}
    assert found.parts[0].codes["type"] == {"value": "10200004", "scheme": "SCT", "meaning": "Liver"}
    assert found.merged.voxels == {number: mask.sum() for number, mask in blocks().items()}


def written_by_highdicom(folder, axes, kind):
    """A segmentation of `blocks` by highdicom, with empty frames left out, next to its CT."""
    sources = classic(np.zeros(SHAPE, np.int16), axes=axes, sop_class=CT)
    for one in sources:
        write(one, folder / "ct" / f"{one.InstanceNumber}.dcm")
        one.PatientID = one.PatientBirthDate = one.PatientSex = one.AccessionNumber = one.StudyID = ""
        one.StudyDate = one.StudyTime = one.ReferringPhysicianName = ""
    described = [
        highdicom.seg.SegmentDescription(number, f"Part {number}", codes.SCT.Organ, codes.SCT.Liver, "MANUAL")
        for number in (1, 2)
    ]
    array = np.stack([mask.transpose(2, 1, 0) for mask in blocks().values()], axis=-1)
    made = highdicom.seg.Segmentation(
        sources, array, kind, described, "1.2.7", 3, "1.2.7.1", 1, "Maker", "Model", "1", "Serial"
    )
    made.save_as(folder / "seg.dcm")
    return folder / "seg.dcm"


@pytest.mark.parametrize("axes", [STRAIGHT, ROTATED], ids=["straight", "oblique"])
@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_the_same_as_highdicom_in_patient_space(tmp_path, axes, kind):
    """Its affine maps (slice, row, column) to LPS+ mm."""
    path = written_by_highdicom(tmp_path, axes, kind)
    found = read_dicom_labels(path)
    theirs = highdicom.seg.segread(path).get_volume(combine_segments=True)
    k, j, i = np.nonzero(theirs.array)
    at = np.linalg.inv(found.geometry.affine) @ np.diag([-1, -1, 1, 1]) @ theirs.affine
    at = at @ np.stack([k, j, i, np.ones_like(i)])
    np.testing.assert_allclose(at[:3], np.round(at[:3]), atol=1e-4)
    assert np.array_equal(found.merged.array[tuple(np.round(at[:3]).astype(int))], theirs.array[k, j, i])
    assert np.count_nonzero(found.merged.array) == len(i) == 25
    placed = read_dicom_labels(path, target_series(tmp_path / "ct"))
    assert np.array_equal(placed.merged.array, joined(blocks()))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian], ids=["implicit", "big"])
def test_other_byte_orders(tmp_path, syntax):
    data = segmentation(blocks())
    found = read_dicom_labels(write(data, tmp_path / "seg.dcm", syntax), target_series(series(tmp_path / "ct")))
    assert np.array_equal(found.merged.array, joined(blocks()))


def test_compressed_frames_of_whole_bytes(tmp_path):
    data = segmentation(blocks(), "LABELMAP")
    path = write(data, tmp_path / "raw.dcm")
    squeezed = dcmread(path)
    squeezed.compress(RLELossless)
    squeezed.save_as(tmp_path / "rle.dcm")
    found = read_dicom_labels(tmp_path / "rle.dcm", target_series(series(tmp_path / "ct")))
    assert np.array_equal(found.merged.array, joined(blocks()))


def test_fractions_of_at_least_one_half_count_and_a_warning_says_so(tmp_path):
    values = np.zeros(SHAPE)
    values[0, 0, 0], values[1, 0, 0], values[2, 0, 0] = 0.495, 0.5, 1.0
    found = read_labels(segmentation({3: values}, "FRACTIONAL"), tmp_path)
    assert np.argwhere(found.merged.array == 3).tolist() == [[1, 0, 0], [2, 0, 0]]
    assert [one for one in found.warnings if "FRACTIONAL (probability)" in one and "half" in one]


def test_padding_and_the_background_of_a_label_map_are_no_label(tmp_path):
    def change(data):
        data.SegmentSequence = segments([0, 1, 2])
        put(data, "PixelPaddingValue", 2, "US")

    found = read_labels(segmentation(blocks(), "LABELMAP", change=change), tmp_path)
    assert np.array_equal(found.merged.array, blocks()[1].astype(np.uint8))
    assert [part.number for part in found.parts] == [1, 2]
    assert "Segment 0 is not coded as background; it is taken as background." in found.warnings


def test_a_label_map_of_16_bits_in_palette_colours(tmp_path):
    values = np.zeros(SHAPE, np.uint16)
    values[1, 2, 3], values[4, 3, 2] = 300, 65000

    def change(data):
        data.SegmentSequence = segments([300, 65000])
        data.PhotometricInterpretation = "PALETTE COLOR"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit = 15
        put(data, "PixelData", np.ascontiguousarray(values.transpose(2, 1, 0)).tobytes(), "OW")

    found = read_labels(segmentation(blocks(), "LABELMAP", change=change), tmp_path)
    assert found.merged.array.dtype == np.uint16
    assert np.array_equal(found.merged.array, values)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["Liver", "", "Liver"], ["Liver 1", "segment 2", "Liver 3"]),
        (["A", "A", "A 1"], ["A 1", "A 2", "A 1 3"]),
        (["A", "B", "C"], ["A", "B", "C"]),
    ],
)
def test_names_are_unique(tmp_path, labels, names):
    def change(data):
        data.SegmentSequence = segments([1, 2, 3])
        for one, label in zip(data.SegmentSequence, labels, strict=True):
            one.SegmentLabel = label

    found = read_labels(segmentation(blocks(), change=change), tmp_path)
    assert [part.name for part in found.parts] == names


# ---- its own grid


def test_positions_without_a_frame_are_empty_slices_of_its_own_grid(tmp_path):
    mask = np.zeros((7, 5, 9), bool)
    mask[2, 3, [1, 2, 6]] = True
    found = read_labels(segmentation({1: mask}, between=None), tmp_path)
    assert found.geometry.shape == (7, 5, 6)
    assert np.array_equal(found.merged.array, mask[:, :, 1:7])
    np.testing.assert_allclose(found.geometry.affine, affine_of(stack(9)[1:7]), atol=1e-6)
    assert "Slices without a frame between the first frame and the last, which stay empty: 3 of 6." in found.warnings


def test_two_frames_with_a_gap_have_the_distance_that_is_stated(tmp_path):
    mask = np.zeros((7, 5, 4), bool)
    mask[2, 3, [0, 2]] = True
    assert read_labels(segmentation({1: mask}), tmp_path).geometry.shape == (7, 5, 3)
    with pytest.raises(InputError, match=r"lie 6 mm apart and state slices of 3 mm, so .* unclear; .*--like"):
        read_labels(segmentation({1: mask}, between=None), tmp_path)


def test_a_stated_distance_that_is_wrong_does_not_count(tmp_path):
    found = read_labels(segmentation(blocks(), between=1.25, keep=lambda *_: True), tmp_path)
    assert np.array_equal(found.merged.array, joined(blocks()))
    assert "SpacingBetweenSlices is 1.25 mm, but frames lie 3 mm apart; their positions count." in found.warnings


def test_uneven_positions_have_no_grid_of_their_own(tmp_path):
    positions = stack(4)
    positions[2, 2] += 1.1
    with pytest.raises(InputError, match=r"slice distance is unclear; give the scan .*--like"):
        read_labels(segmentation(blocks(), positions=positions, keep=lambda *_: True), tmp_path)


def test_a_doubled_position_is_one_slice(tmp_path):
    """A mean over gaps would make the distance smaller."""
    found = read_labels(segmentation(blocks(), keep=lambda *_: True, between=None), tmp_path)
    assert found.geometry.spacing_mm[2] == pytest.approx(3.0)


# ---- the grid of a scan


def test_a_part_of_the_scan_is_embedded_whatever_the_direction_of_its_slices(tmp_path):
    """Rows and columns swapped and reversed: its pixels run along -J and I of the scan."""
    ct = series(tmp_path / "ct", (9, 9, 6))
    mask = np.zeros((3, 4, 2), bool)
    mask[0, 1, 0] = mask[2, 3, 1] = mask[1, 0, 1] = True

    def change(data):
        for group in data.PerFrameFunctionalGroupsSequence:
            k = round((float(group.PlanePositionSequence[0].ImagePositionPatient[2]) + 30) / 3)
            # Scan voxel (2, 7, 4 - k) is the first pixel.
            put(
                group.PlanePositionSequence[0],
                "ImagePositionPatient",
                f"{-10 + 1}\\{20 + 7 * 0.75}\\{-30 + 3 * (4 - k)}",
            )
            put(group.PlaneOrientationSequence[0], "ImageOrientationPatient", "0\\-1\\0\\1\\0\\0")
        put(data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0], "PixelSpacing", "0.5\\0.75")

    found = read_labels(segmentation({1: mask}, change=change), tmp_path, ct)
    expected = np.zeros((9, 9, 6), np.uint8)
    for column, row, k in np.argwhere(mask):
        expected[2 + row, 7 - column, 4 - k] = 1
    assert np.array_equal(found.merged.array, expected)


def test_voxels_beyond_the_scan_are_cut_off_with_a_warning(tmp_path):
    found = read_labels(segmentation(blocks()), tmp_path, series(tmp_path / "ct", (5, 5, 4)))
    assert np.array_equal(found.merged.array, joined(blocks())[:5])
    assert "6 of 25 labelled voxels lie outside the scan; they are cut off." in found.warnings


@pytest.mark.parametrize(
    ("positions", "words"),
    [
        (stack(4) + np.array([0.2, 0, 0]), "voxels of frame 1 lie up to 0.40 voxels beside"),
        (stack(4) + 900, "lie outside the scan"),
    ],
)
def test_voxels_that_are_not_those_of_the_scan_are_rejected(tmp_path, positions, words):
    with pytest.raises(GridError, match=words):
        read_labels(segmentation(blocks(), positions=positions), tmp_path, series(tmp_path / "ct"))


def test_slices_farther_apart_than_those_of_the_scan_are_rejected(tmp_path):
    thin = series(tmp_path / "ct", (7, 5, 8), positions=stack(8, step=1.5))
    with pytest.raises(GridError, match=r"has slices 3 mm apart, but those of the scan are 1.5 mm apart"):
        read_labels(segmentation(blocks()), tmp_path, thin)


# ---- overlaps


def test_a_segment_within_another_keeps_its_number_and_the_outer_one_has_two_values(tmp_path):
    outer, inner = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    outer[1:6, 1:4, 1:3] = True
    inner[2:4, 2, 2] = True
    found = read_labels(segmentation({5: outer, 3: inner}), tmp_path, series(tmp_path / "ct"))
    assert found.merged.values == {5: (3, 5), 3: (3,)}
    assert np.array_equal(np.isin(found.merged.array, (3, 5)), outer)
    assert np.array_equal(found.merged.array == 3, inner)
    found.reject_overlaps("seg.dcm")


def test_segments_that_cross_have_a_value_for_what_they_share_or_are_rejected_by_name(tmp_path):
    one, two, three = (np.zeros(SHAPE, bool) for _ in range(3))
    one[:4, :, 1], two[2:, :, 1], three[0, 0, 3] = True, True, True
    found = read_labels(segmentation({1: one, 2: two, 4: three}), tmp_path, series(tmp_path / "ct"))
    assert found.merged.values == {1: (1, 5), 2: (2, 5), 4: (4,)}
    for number, mask in {1: one, 2: two, 4: three}.items():
        assert np.array_equal(np.isin(found.merged.array, found.merged.values[number]), mask)
    with pytest.raises(InputError, match=r"seg.dcm: labels overlap.*Part 2 and Part 1 \(10 voxels\)"):
        found.reject_overlaps("seg.dcm")


# ---- faults


def cut(count):
    def change(data):
        put(data, "PixelData", bytes(data.PixelData)[:count], "OB")

    return change


def with_groups(name, **values):
    def change(data):
        item = data.PerFrameFunctionalGroupsSequence[1]
        if values:
            for key, value in values.items():
                put(item[name].value[0], key, value)
        else:
            del item[name]

    return change


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("BINARY", cut(14), r"4 x 5 x 7 pixels of 1 bit are 18 bytes, found 14"),
        ("BINARY", lambda data: put(data, "PixelData", bytes(18) + b"\1\0", "OB"), "PixelData has 20 bytes"),
        ("LABELMAP", cut(100), r"4 x 5 x 7 pixels of 8 bits are 140 bytes, found 100"),
        ("BINARY", with_groups("PlanePositionSequence"), "lack ImagePositionPatient"),
        ("BINARY", with_groups("SegmentIdentificationSequence"), "frame 2 names no segment"),
        (
            "BINARY",
            with_groups("SegmentIdentificationSequence", ReferencedSegmentNumber=9),
            "frame 2 names segment 9, which SegmentSequence lacks",
        ),
        ("LABELMAP", lambda data: setattr(data, "SegmentSequence", segments([1])), "name segment 2, which"),
        ("BINARY", lambda data: setattr(data, "SegmentSequence", segments([1, 1])), "lists a segment twice"),
        ("BINARY", lambda data: setattr(data, "NumberOfFrames", 5), "NumberOfFrames is 5, but .* of 4 frames"),
        ("BINARY", lambda data: setattr(data, "SegmentationType", "SURFACE"), "SegmentationType is SURFACE"),
        ("FRACTIONAL", lambda data: setattr(data, "MaximumFractionalValue", 0), "MaximumFractionalValue is 0"),
        ("BINARY", lambda data: setattr(data, "BitsAllocated", 8), "BitsAllocated 8, .* expected 1 each"),
    ],
)  # fmt: skip
def test_faults_are_named(tmp_path, kind, change, words):
    with pytest.raises(InputError, match=words) as caught:
        read_labels(segmentation(blocks(), kind, change=change), tmp_path)
    assert "Secret" not in str(caught.value)


def test_a_file_that_ends_early_is_rejected_wherever_it_ends(tmp_path):
    path = write(segmentation(blocks()), tmp_path / "seg.dcm")
    content = path.read_bytes()
    for size in range(400, len(content), 61):
        path.write_bytes(content[:size])
        with pytest.raises(InputError):
            read_dicom_labels(path)
