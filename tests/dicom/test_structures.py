"""RT Structure Sets: contours where the slices of the source are, and everything around them."""

import shutil
import subprocess

import nibabel
import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Polygon

import volseg
from tests.data.io.dicom import writers
from tests.pipeline import write_model
from volseg.api.outputs import find_format
from volseg.config import Label
from volseg.dicom.about import About
from volseg.dicom.identity import identity_of
from volseg.dicom.objects import write
from volseg.dicom.source import source_of
from volseg.dicom.structures import structure_set
from volseg.errors import InputError, UsageError
from volseg.report.colours import label_colours

SAGITTAL = np.array([[0.0, 1, 0], [0, 0, -1]]).T
CORONAL = np.array([[1.0, 0, 0], [0, 0, -1]]).T
PLANES = {"axial": writers.STRAIGHT, "sagittal": SAGITTAL, "coronal": CORONAL, "oblique": writers.ROTATED}
SHA = "0123456789abcdef" * 4
# What the source states of a patient and study; the plain writers leave most of it out.
COMPLETE = {
    "PatientID": "P1", "PatientBirthDate": "19700101", "PatientSex": "O", "StudyDate": "20240203",
    "StudyTime": "101112", "StudyID": "S1", "AccessionNumber": "A1", "ReferringPhysicianName": "Doe^Jane",
}  # fmt: skip
LABELS = tuple(Label(name=name, value=value) for name, value in [("ring", 1), ("block", 2), ("dots", 3), ("absent", 9)])


def phantom(shape=(22, 18, 9)):
    """Labels without any symmetry: a ring with an island in it, a block with a hole, single voxels."""
    i, j, k = np.indices(shape)
    labels = np.zeros(shape, dtype=np.uint8)
    away = np.hypot(i - 8, j - 7)
    labels[(away < 6.5) & (k > 0) & (k < 7)] = 1
    labels[(away < 4.2) & (k > 1) & (k < 6)] = 0
    labels[(away < 1.5) & (k > 2) & (k < 5)] = 1
    labels[17:22, 10:18, 2:9] = 2
    labels[18:20, 12:15, 4:6] = 0
    labels[3, 16, 2] = labels[1, 1, 7] = labels[2, 2, 7] = 3
    return labels


def series(folder, labels, kind=writers.classic, **options):
    """A source series whose voxels are the labels; returns its folder, its scan and the labels as that was read."""
    writers.write_kind(folder, kind, labels.astype(np.int16) * 100, **(COMPLETE | options))
    scan = writers.read(folder)
    return folder, scan, (scan.channels[0] // 100).astype(labels.dtype)


def about(scan, labels, shown=LABELS, model="phantom"):
    source = source_of(scan)
    return About(source, identity_of(source, SHA, {}, labels), shown, model, SHA)


def written(path, labels, subject, xor=False):
    write(structure_set(labels, subject, xor), path)
    return pydicom.dcmread(path)


def filled(data, folder, shape):
    """The contours as labels (I, J, K), slices by their SOP Instance UIDs, from nothing but the files on disk."""
    order = sorted(folder.glob("*.dcm"))
    slices = {one.SOPInstanceUID: one for one in map(pydicom.dcmread, order)}
    masks = {}
    for region in data.ROIContourSequence:
        for contour in region.get("ContourSequence", ()):
            (image,) = contour.ContourImageSequence
            where = (image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber", 0))
            points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
            assert len(points) == contour.NumberOfContourPoints >= 3
            indices, off = pixels_of(points, slices[where[0]], where[1])
            assert np.abs(off).max() < 1e-4, "a contour off the plane of its slice"
            centres = np.indices(shape[:2]).reshape(2, -1).T.astype(float)
            inside = Polygon(np.vstack([indices, indices[:1]]), closed=True).contains_points(centres)
            mask = masks.setdefault((region.ReferencedROINumber, *where), np.zeros(shape[:2], dtype=bool))
            mask ^= inside.reshape(shape[:2])
    return masks


def pixels_of(points, image, frame):
    """Patient mm as (i, j) of an image, and how far they are off its plane, from the attributes of the image."""
    if frame:
        groups = image.PerFrameFunctionalGroupsSequence[frame - 1]
        position = groups.PlanePositionSequence[0].ImagePositionPatient
        orientation = groups.PlaneOrientationSequence[0].ImageOrientationPatient
        spacing = groups.PixelMeasuresSequence[0].PixelSpacing
    else:
        position, orientation, spacing = image.ImagePositionPatient, image.ImageOrientationPatient, image.PixelSpacing
    row, column = np.array(orientation, dtype=float).reshape(2, 3)
    away = points - np.array(position, dtype=float)
    return np.stack([away @ row / spacing[1], away @ column / spacing[0]], axis=1), away @ np.cross(row, column)


def expected(labels, scan):
    """The masks of `filled` that the labels have."""
    found = {}
    for k, one in enumerate(source_of(scan).references):
        for value in np.unique(labels[:, :, k])[1:]:
            found[int(value), one.instance, one.frame] = labels[:, :, k] == value
    return found


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for key, mask in wanted.items():
        np.testing.assert_array_equal(found[key], mask, err_msg=str(key))


@pytest.mark.parametrize("xor", [False, True])
@pytest.mark.parametrize("kind", [writers.classic, writers.enhanced])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("plane", PLANES)
def test_contours_lie_on_the_voxels_of_the_labels(tmp_path, plane, backwards, kind, xor):
    axes, labels = PLANES[plane], phantom()
    positions = writers.stack(labels.shape[2], axes, -3.0 if backwards else 3.0)
    folder, scan, labels = series(tmp_path / "series", labels, kind, axes=axes, positions=positions)
    data = written(tmp_path / "x.dcm", labels, about(scan, labels), xor)
    assert_same(filled(data, folder, labels.shape), expected(labels, scan))


def test_a_region_has_the_voxels_of_all_its_values(tmp_path):
    """As in a binary segmentation: regions of interest overlap where the regions do."""
    regions = (Label(name="whole", value=1, parts=(1, 2, 3)), Label(name="core", value=2, parts=(2,)))
    folder, scan, labels = series(tmp_path / "series", phantom())
    data = written(tmp_path / "x.dcm", labels, about(scan, labels, regions))
    assert [one.ROIName for one in data.StructureSetROISequence] == ["whole", "core"]
    wanted = {(2, *key[1:]): mask for key, mask in expected(np.where(labels == 2, labels, 0), scan).items()}
    wanted |= expected((labels > 0).astype(np.uint8), scan)
    assert_same(filled(data, folder, labels.shape), wanted)


def test_unevenly_spaced_and_shifted_slices_keep_their_own_places(tmp_path):
    """Each slice has the position that it states, not that of a grid with the mean distance."""
    labels = phantom()
    positions = writers.stack(labels.shape[2], writers.ROTATED)
    shifts = np.array([0, 0.14, -0.1, 0.05, 0, 0.12, -0.13, 0.02, 0])
    positions += shifts[:, None] * writers.normal_of(writers.ROTATED) + shifts[::-1, None] * writers.ROTATED[:, 0]
    folder, scan, labels = series(tmp_path / "series", labels, axes=writers.ROTATED, positions=positions)
    data = written(tmp_path / "x.dcm", labels, about(scan, labels))
    assert_same(filled(data, folder, labels.shape), expected(labels, scan))


def test_a_tilted_stack_keeps_its_shear(tmp_path):
    labels = phantom()
    positions = writers.stack(labels.shape[2]) + np.arange(labels.shape[2])[:, None] * [0.0, 0.8, 0.0]
    made = writers.classic(labels.astype(np.int16) * 100, positions, sop_class=writers.CT, **COMPLETE)
    folder = writers.write_all(tmp_path / "series", made)
    scan = writers.read(folder, untilt=True)
    data = written(tmp_path / "x.dcm", labels, about(scan, labels))
    assert_same(filled(data, folder, labels.shape), expected(labels, scan))


def test_contours_of_a_multi_frame_source_name_its_frames(tmp_path):
    _, scan, labels = series(tmp_path / "series", phantom(), writers.enhanced)
    data = written(tmp_path / "x.dcm", labels, about(scan, labels))
    (image,) = referenced_series(data).ContourImageSequence
    assert image.ReferencedSOPClassUID == writers.ENHANCED_MR
    assert image.ReferencedFrameNumber == list(range(1, 10))
    (dots,) = [one for one in data.ROIContourSequence if one.ReferencedROINumber == 3]
    frames = [one.ContourImageSequence[0].ReferencedFrameNumber for one in dots.ContourSequence]
    assert frames == [3, 8, 8]


def referenced_series(data):
    (frame_of_reference,) = data.ReferencedFrameOfReferenceSequence
    (study,) = frame_of_reference.RTReferencedStudySequence
    (found,) = study.RTReferencedSeriesSequence
    return found


def test_the_object_refers_to_study_series_and_every_slice(tmp_path):
    folder, scan, labels = series(tmp_path / "series", phantom())
    data = written(tmp_path / "x.dcm", labels, about(scan, labels))
    first = pydicom.dcmread(next(folder.glob("*.dcm")))
    assert (data.Modality, data.SOPClassUID) == ("RTSTRUCT", "1.2.840.10008.5.1.4.1.1.481.3")
    assert (data.StudyInstanceUID, data.FrameOfReferenceUID) == ("1.2.3", "1.2.9")
    assert (data.PatientName, data.PatientID) == (first.PatientName, "P1")
    (frame_of_reference,) = data.ReferencedFrameOfReferenceSequence
    assert frame_of_reference.FrameOfReferenceUID == "1.2.9"
    assert frame_of_reference.RTReferencedStudySequence[0].ReferencedSOPInstanceUID == "1.2.3"
    assert referenced_series(data).SeriesInstanceUID == "1.2.3.4"
    images = referenced_series(data).ContourImageSequence
    assert {one.ReferencedSOPInstanceUID for one in images} == {f"1.2.3.4.{k}" for k in range(1, 10)}
    assert len(images) == 9
    assert not any("ReferencedFrameNumber" in one for one in images)
    assert (data.SeriesNumber, data.StructureSetDate, data.StructureSetTime) == (702, "20240203", "101112")
    assert data.StructureSetLabel == "phantom"
    assert data.ApprovalStatus == "UNAPPROVED"


def test_every_label_is_a_region_and_one_without_voxels_has_no_contours(tmp_path):
    _, scan, labels = series(tmp_path / "series", phantom())
    data = written(tmp_path / "x.dcm", labels, about(scan, labels))
    regions = data.StructureSetROISequence
    assert [(one.ROINumber, one.ROIName) for one in regions] == [(one.value, one.name) for one in LABELS]
    assert {one.ROIGenerationAlgorithm for one in regions} == {"AUTOMATIC"}
    assert regions[0].ROIGenerationDescription == "phantom (sha256 0123456789abcdef)"
    assert {one.ReferencedFrameOfReferenceUID for one in regions} == {"1.2.9"}
    assert [one.ROIDisplayColor for one in data.ROIContourSequence] == [list(one) for one in label_colours(LABELS)]
    assert [len(one.get("ContourSequence", ())) for one in data.ROIContourSequence[2:]] == [3, 0]
    assert [one.ReferencedROINumber for one in data.RTROIObservationsSequence] == [1, 2, 3, 9]
    for one in data.ROIContourSequence[:3]:
        contours = one.ContourSequence
        assert [contour.ContourNumber for contour in contours] == list(range(1, len(contours) + 1))
        assert {contour.ContourGeometricType for contour in contours} == {"CLOSED_PLANAR"}


def test_the_way_of_holes_is_stated_and_followed(tmp_path):
    _, scan, labels = series(tmp_path / "series", phantom())
    keyhole = written(tmp_path / "key.dcm", labels, about(scan, labels))
    xor = written(tmp_path / "xor.dcm", labels, about(scan, labels).with_options({"xor"}), xor=True)
    assert "keyhole" in keyhole.StructureSetROISequence[0].ROIDescription
    assert "XOR" in xor.StructureSetROISequence[0].ROIDescription
    # The ring has a hole in 4 slices, with an island in 2 of them; the block has one in 2 of its 7.
    assert [len(one.ContourSequence) for one in keyhole.ROIContourSequence[:2]] == [6 + 2, 7]
    assert [len(one.ContourSequence) for one in xor.ROIContourSequence[:2]] == [6 + 2 + 4, 7 + 2]
    assert keyhole.SOPInstanceUID != xor.SOPInstanceUID


def test_an_empty_result_is_a_structure_set_without_contours(tmp_path):
    _, scan, labels = series(tmp_path / "series", phantom())
    nothing = np.zeros_like(labels)
    data = written(tmp_path / "x.dcm", nothing, about(scan, nothing))
    assert len(data.StructureSetROISequence) == len(data.ROIContourSequence) == 4
    assert not any("ContourSequence" in one for one in data.ROIContourSequence)


def test_the_same_result_is_the_same_file(tmp_path):
    _, scan, labels = series(tmp_path / "series", phantom())
    again = writers.read(tmp_path / "series")
    for name, one in (("a", scan), ("b", again)):
        written(tmp_path / name, labels, about(one, labels))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    # The order of the labels in memory is no part of the result.
    written(tmp_path / "c", np.asfortranarray(labels.astype(np.uint16)), about(scan, np.asfortranarray(labels)))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "c").read_bytes()
    labels[0, 0, 0] = 1
    other = written(tmp_path / "d", labels, about(scan, labels))
    assert other.SOPInstanceUID != pydicom.dcmread(tmp_path / "a").SOPInstanceUID


@pytest.mark.parametrize("far", [0.0, -123456.789])
def test_numbers_have_16_characters_at_most_and_lose_nothing(tmp_path, far):
    labels = phantom()
    positions = writers.stack(labels.shape[2], writers.ROTATED) + far
    _, scan, labels = series(tmp_path / "series", labels, axes=writers.ROTATED, positions=positions)
    subject = about(scan, labels)
    data = structure_set(labels, subject)
    (dots,) = [one for one in data.ROIContourSequence if one.ReferencedROINumber == 3]
    parts = dots.ContourSequence[0].ContourData.split("\\")
    assert max(map(len, parts)) <= 16
    centre = np.array(parts, dtype=float).reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(centre, subject.source.to_patient(np.array([[3.0, 16, 2]]))[0], atol=1e-4)


def test_contours_longer_than_64_kilobytes_are_whole(tmp_path):
    """A sieve: one contour around all its holes, too long for a DS with an explicit value representation."""
    i, j, k = np.indices((61, 61, 2))
    labels = ((k == 0) & ((i % 2 == 0) | (j % 2 == 0))).astype(np.uint8)
    folder, scan, labels = series(tmp_path / "series", labels)
    data = written(tmp_path / "x.dcm", labels, about(scan, labels))
    (contour,) = data.ROIContourSequence[0].ContourSequence
    assert contour.NumberOfContourPoints * 3 * len("1.00000\\") > 65534
    assert_same(filled(data, folder, labels.shape), expected(labels, scan))


def test_more_than_255_labels(tmp_path):
    values = np.arange(1, 301)
    labels = np.zeros((20, 20, 3), dtype=np.uint16)
    labels[:, :, 1].flat[: len(values)] = values
    _, scan, _ = series(tmp_path / "series", labels // 10)
    shown = tuple(Label(name=f"part {value}", value=value) for value in values)
    data = written(tmp_path / "x.dcm", labels, about(scan, labels, shown))
    assert [one.ReferencedROINumber for one in data.ROIContourSequence] == values.tolist()
    assert all(len(one.ContourSequence) == 1 for one in data.ROIContourSequence)


def test_a_source_without_a_frame_of_reference_gets_a_derived_one(tmp_path):
    _, scan, labels = series(tmp_path / "series", phantom(), FrameOfReferenceUID=None)
    found = set()
    for name in ("a", "b"):
        data = written(tmp_path / name, labels, about(scan, labels))
        found |= {data.FrameOfReferenceUID, data.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID}
        found |= {one.ReferencedFrameOfReferenceUID for one in data.StructureSetROISequence}
    (uid,) = found
    assert uid.startswith("2.25.")
    assert uid.is_valid


def test_uids_of_the_source_stay_whoever_made_them(tmp_path):
    """Series of phantoms and de-identified ones have UIDs of pydicom's root, which is no reason to replace them."""
    root = pydicom.uid.PYDICOM_ROOT_UID
    _, scan, labels = series(
        tmp_path / "series", phantom(), StudyInstanceUID=f"{root}1", SeriesInstanceUID=f"{root}2",
        FrameOfReferenceUID=f"{root}3", change=lambda k, data: setattr(data, "SOPInstanceUID", f"{root}4.{k}"),
    )  # fmt: skip
    data = written(tmp_path / "x.dcm", labels, about(scan, labels))
    assert (data.StudyInstanceUID, data.FrameOfReferenceUID) == (f"{root}1", f"{root}3")
    assert referenced_series(data).SeriesInstanceUID == f"{root}2"
    images = referenced_series(data).ContourImageSequence
    assert {one.ReferencedSOPInstanceUID for one in images} == {f"{root}4.{k}" for k in range(9)}


def test_names_are_written_as_dicom_holds_them(tmp_path):
    _, scan, labels = series(tmp_path / "series", phantom())
    shown = (Label(name="left\\right\nlobe", value=1), Label(name="肝" * 70, value=2), Label(name="é", value=3))
    data = written(tmp_path / "x.dcm", labels, about(scan, labels, shown, model="m" * 80))
    assert [one.ROIName for one in data.StructureSetROISequence] == ["left right lobe", "肝" * 64, "é"]
    assert data.SpecificCharacterSet == "ISO_IR 192"
    assert data.StructureSetLabel == "m" * 16
    assert data.StructureSetROISequence[0].ROIGenerationDescription.endswith(" (sha256 0123456789abcdef)")
    assert len(data.StructureSetROISequence[0].ROIGenerationDescription) == 64


def test_private_attributes_and_pixels_are_not_copied(tmp_path):
    def private(k, data):
        data.private_block(0x0029, "ACME", create=True).add_new(1, "LO", "Secret")

    _, scan, labels = series(tmp_path / "series", phantom(), change=private)
    data = written(tmp_path / "x.dcm", labels, about(scan, labels))
    assert not [one for one in data.iterall() if one.tag.is_private]
    assert "PixelData" not in data
    assert "Rows" not in data


def test_predicting_writes_a_structure_set_with_the_options_of_the_format(tmp_path):
    folder, _, _ = series(tmp_path / "series", phantom((24, 22, 20)))
    model = write_model(tmp_path / "m.safetensors")
    (done,) = volseg.predict(folder, model, tmp_path / "out", to=["nifti", "rtstruct:xor"], device="cpu")
    data = pydicom.dcmread(tmp_path / "out" / "series.rtstruct.dcm")
    assert "XOR" in data.StructureSetROISequence[0].ROIDescription
    assert [one.ROIName for one in data.StructureSetROISequence] == ["ball", "rod"]
    labels = np.asarray(nibabel.load(done.output).dataobj)
    assert len(np.unique(labels)) > 1
    scan = writers.read(folder)
    assert_same(filled(data, folder, labels.shape), expected(labels, scan))


def test_only_dicom_series_have_structure_sets(tmp_path):
    nibabel.save(nibabel.Nifti1Image(phantom().astype(np.int16), np.eye(4)), tmp_path / "scan.nii.gz")
    model = write_model(tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="no DICOM"):
        volseg.Segmenter.load(model, device="cpu")(tmp_path / "scan.nii.gz").save(tmp_path / "x.dcm", to="rtstruct")
    assert not (tmp_path / "x.dcm").exists()
    with pytest.raises(UsageError, match="has no option 'holes'; it has xor"):
        find_format("rtstruct:holes")


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy (Debian's dicom3tools) is not installed")
@pytest.mark.parametrize("options", [{}, {"xor": True}])
@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("kind", [writers.classic, writers.enhanced])
def test_dciodvfy_finds_nothing(tmp_path, kind, empty, options):
    _, scan, labels = series(tmp_path / "series", phantom(), kind)
    labels = labels * (not empty)
    written(tmp_path / "x.dcm", labels, about(scan, labels), **options)
    done = subprocess.run(["dciodvfy", tmp_path / "x.dcm"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.split("\n")) == (0, ["RTStructureSet", ""])


@pytest.mark.skipif(not shutil.which("plastimatch"), reason="plastimatch is not installed")
@pytest.mark.parametrize("plane", PLANES)
def test_plastimatch_reads_the_labels_back(tmp_path, plane):
    """By software that is not volseg's, on the grid of the series."""
    import SimpleITK as sitk  # noqa: PLC0415 - slow to load

    folder, scan, labels = series(tmp_path / "series", phantom(), axes=PLANES[plane])
    written(tmp_path / "x.dcm", labels, about(scan, labels))
    subprocess.run(
        ["plastimatch", "convert", "--input", tmp_path / "x.dcm", "--referenced-ct", folder, "--output-prefix",
         tmp_path / "out", "--prefix-format", "nrrd"], check=True, capture_output=True,
    )  # fmt: skip
    lps = np.diag([-1.0, -1, 1, 1]) @ scan.geometry.affine
    for label in LABELS[:3]:
        image = sitk.ReadImage(tmp_path / "out" / f"{label.name}.nrrd")
        np.testing.assert_allclose(image.GetOrigin(), lps[:3, 3], atol=1e-4)
        directions = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        np.testing.assert_allclose(directions, lps[:3, :3], atol=1e-4)
        found, wanted = sitk.GetArrayFromImage(image).T > 0, labels == label.value
        dice = 2 * (found & wanted).sum() / (found.sum() + wanted.sum())
        assert dice >= 0.98, label.name
