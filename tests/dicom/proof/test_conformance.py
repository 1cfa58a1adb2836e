"""Objects conform to the standard as far as dicom3tools know it, and agree with the study they belong to."""

import pydicom
import pytest

from tests.dicom.proof.conformance import ALLOWED, UNKNOWN_TO_TOOLS, lines_about, lines_about_study, unexplained
from tests.dicom.proof.kinds import dicom_outputs, suffix_of
from tests.dicom.proof.other_software import program
from tests.dicom.proof.phantom_series import Series, result_of, write_series

SOURCES = (
    Series("axial"),
    Series("oblique", "down", "unequal", "classic", "MR"),
    Series("sagittal", "down", "unequal", "enhanced", "CT"),
    Series("coronal", "up", "equal", "enhanced", "MR"),
)
OF_PATIENT_AND_STUDY = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID")
needs_dicom3tools = pytest.mark.skipif(
    not (program("dciodvfy") and program("dcentvfy")), reason="needs dciodvfy and dcentvfy (Debian's dicom3tools)"
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Files by source: {series: (files of the source, {output: file})}."""
    folder, made = tmp_path_factory.mktemp("study"), {}
    for number, series in enumerate(SOURCES):
        scan = write_series(folder / f"scan{number}", series)
        result = result_of(scan)
        objects = {output: folder / f"result{number}{suffix_of(output)}" for output in dicom_outputs()}
        for output, file in objects.items():
            result.save(file, to=output)
        made[series] = sorted(scan.iterdir()), objects
    return made


@needs_dicom3tools
@pytest.mark.parametrize("series", SOURCES, ids=str)
def test_the_phantom_itself_has_no_line(series, study):
    assert [line for file in study[series][0] for line in lines_about(file)] == []


@needs_dicom3tools
def test_every_line_about_an_object_is_explained(study, record_property):
    used, left = set(), {}
    for series, (_, objects) in study.items():
        for output, file in objects.items():
            lines = lines_about(file)
            if output in UNKNOWN_TO_TOOLS:
                record_property(f"{output} of {series}", "; ".join(lines))
            elif found := unexplained(lines, output, used):
                left[f"{output} of {series}"] = found
    known = [
        file for _, objects in study.values() for output, file in objects.items() if output not in UNKNOWN_TO_TOOLS
    ]
    files = [file for scan, _ in study.values() for file in scan] + known
    if found := unexplained(lines_about_study(files), "study", used):
        left["the study"] = found
    assert left == {}
    assert set(ALLOWED) - used == set(), "entries of the allow-list that nothing needs"


@needs_dicom3tools
def test_what_is_wrong_is_said(study, tmp_path):
    scan, objects = study[SOURCES[0]]
    data = pydicom.dcmread(objects["dicom-seg"])
    del data.ContentLabel
    data.PatientSex = "F"
    data.save_as(tmp_path / "wrong.dcm")
    assert any("ContentLabel" in line for line in unexplained(lines_about(tmp_path / "wrong.dcm"), "dicom-seg", set()))
    assert any("PatientSex" in line or "Patient" in line for line in lines_about_study([*scan, tmp_path / "wrong.dcm"]))


def test_each_allowed_line_has_a_reason():
    assert all(one.pattern and one.kinds and one.reason.endswith(".") for one in ALLOWED)
    assert all(set(one.kinds) <= {*dicom_outputs(), "study"} for one in ALLOWED)


def test_objects_belong_to_the_study_of_their_source(study):
    for scan, objects in study.values():
        source = pydicom.dcmread(scan[0], stop_before_pixels=True)
        for file in objects.values():
            data = pydicom.dcmread(file, stop_before_pixels=True)
            assert [data.get(name) for name in OF_PATIENT_AND_STUDY] == [source[n].value for n in OF_PATIENT_AND_STUDY]
            assert data.SeriesInstanceUID != source.SeriesInstanceUID
            # A report and a picture need no frame of reference; what states one states that of the source.
            assert data.get("FrameOfReferenceUID") in (None, source.FrameOfReferenceUID)


def test_references_name_files_and_frames_that_exist(study):
    for scan, objects in study.values():
        # A report may refer to the segmentation of its labels.
        headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in (*scan, *objects.values())]
        classes = {one.SOPInstanceUID: one.SOPClassUID for one in headers}
        frames = {one.SOPInstanceUID: int(one.get("NumberOfFrames", 0)) for one in headers}
        for output, file in objects.items():
            found = list(_references(pydicom.dcmread(file, stop_before_pixels=True)))
            assert found, f"{output} refers to nothing"
            for sop_class, instance, numbers in found:
                assert classes.get(instance) == sop_class, f"{output} refers to {instance} of class {sop_class}"
                assert all(1 <= number <= frames[instance] for number in numbers)


def test_a_series_lists_each_instance_once(study):
    for _, objects in study.values():
        for output, file in objects.items():
            for series in pydicom.dcmread(file, stop_before_pixels=True).get("ReferencedSeriesSequence", ()):
                listed = [one.ReferencedSOPInstanceUID for one in series.ReferencedInstanceSequence]
                assert len(set(listed)) == len(listed), output


def test_segmentations_of_multi_frame_sources_name_the_frames(study):
    """Frames of a multi-frame source that a frame of a segmentation comes from are named by their number."""
    for series, (_, objects) in study.items():
        if series.kind != "enhanced":
            continue
        for groups in pydicom.dcmread(objects["dicom-seg"]).PerFrameFunctionalGroupsSequence:
            (source,) = groups.DerivationImageSequence[0].SourceImageSequence
            assert "ReferencedFrameNumber" in source


def _references(data):
    """Class, instance and frames of each reference to an image, at any depth."""
    for element in data:
        if element.VR == "SQ":
            for item in element.value:
                # A structure set names the detached study by a class of its own.
                if "ReferencedSOPInstanceUID" in item and element.keyword not in ("RTReferencedStudySequence",):
                    numbers = item.get("ReferencedFrameNumber", [])
                    numbers = [numbers] if isinstance(numbers, int) else list(numbers)
                    yield item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID, numbers
                yield from _references(item)
