"""Structured reports, read back by highdicom, pydicom and dcmtk."""

import re
import shutil
import subprocess
import sys
from typing import get_args

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from tests.data.io.dicom import writers
from tests.dicom.whole_results import SHA, TABLE, phantom, result_of
from volseg.api.outputs import find_format
from volseg.api.predicting.files import possible_formats
from volseg.config import Label
from volseg.dicom.report.measurement_report import FLAGS
from volseg.dicom.report.measurements import measure_labels
from volseg.errors import InputError
from volseg.inference.quality import IN_WORDS, ScanFlag


def saved(result, folder, to="dicom-sr"):
    """The report, read by highdicom."""
    path = folder / "x.sr.dcm"
    result.save(path, to=to)
    return hd.sr.srread(path)


def volumetric(report, name="ring"):
    (found,) = [
        one
        for one in report.content.get_volumetric_roi_measurement_groups()
        if one.tracking_identifier == f"phantom: {name}"
    ]
    return found


def value(group, name, derivation=None):
    """The value and the unit's code of a measurement."""
    (found,) = derived(group.get_measurements(name), derivation)
    return found.value, found.unit.value


def derived(measurements, derivation):
    """Those with a derivation; codes cannot be compared with None."""
    return [
        one for one in measurements if (one.derivation and one.derivation.value) == (derivation and derivation.value)
    ]


def flags(group):
    """The quality flags of a group."""
    return [one.value for one in group.get_qualitative_evaluations() if one.name.value == "flag"]


def texts(items):
    """All texts below items, with the names of what they say."""
    found = []
    for item in items:
        if item.ValueType == "TEXT":
            found.append((item.ConceptNameCodeSequence[0].CodeMeaning, item.TextValue))
        found += texts(item.get("ContentSequence", ()))
    return found


def comments(items):
    return [text for name, text in texts(items) if name == "Comment"]


def test_numbers_are_those_of_the_record_and_of_plain_sums(tmp_path):
    result = result_of(tmp_path / "series")
    report = saved(result, tmp_path)
    numbers = measure_labels(result.labels, result.scan.channels[0], result.scan.geometry, result.shown)
    for name, measured in zip(("ring", "kidney_left"), numbers, strict=False):
        group = volumetric(report, name)
        assert value(group, codes.SCT.Volume) == (result.record["labels"][name]["volume_ml"], "mL")
        assert value(group, codes.SCT.LongAxis, codes.SCT.Maximum) == (measured.diameter_mm, "mm")
        found = result.scan.channels[0][result.labels == (1 if name == "ring" else 2)]
        mean, unit = value(group, codes.DCM.MRSignalIntensity, codes.SCT.Mean)
        assert mean == pytest.approx(found.mean())
        assert unit == "1"
        spread, _ = value(group, codes.DCM.MRSignalIntensity, codes.SCT.StandardDeviation)
        assert spread == pytest.approx(found.std())


@pytest.mark.parametrize("kind", [writers.classic, writers.enhanced])
@pytest.mark.parametrize("axes", [writers.STRAIGHT, writers.ROTATED], ids=["axial", "oblique"])
def test_the_centre_of_mass_is_a_point_of_the_patient(tmp_path, kind, axes):
    labels = phantom()
    report = saved(result_of(tmp_path / "series", labels, kind=kind, axes=axes), tmp_path)
    (group,) = [
        one
        for one in report.content.get_planar_roi_measurement_groups()
        if one.tracking_uid == volumetric(report).tracking_uid
    ]
    # By what the files state, not by the geometry that was read.
    i, j, k = np.argwhere(labels == 1).mean(axis=0)
    step = writers.normal_of(axes) * writers.SPACING[2]
    expected = writers.ORIGIN + axes[:, 0] * i * writers.SPACING[0] + axes[:, 1] * j * writers.SPACING[1] + step * k
    assert group.roi.graphic_type == hd.sr.GraphicTypeValues3D.POINT
    np.testing.assert_allclose(group.roi.value[0], expected, atol=1e-4)
    assert group.roi.frame_of_reference_uid == "1.2.9"
    assert codes.DCM.CenterOfMass in [
        item.value for item in group[0].ContentSequence if item.ValueType == "CODE" and item.name.value == "130400"
    ]


REGIONS = (Label(name="whole", value=1, parts=(1, 2)), Label(name="core", value=2, parts=(2,)))


def test_a_region_refers_to_its_segment_where_one_holds_its_voxels(tmp_path):
    result = result_of(tmp_path / "series", table=REGIONS)
    voxels = float(np.isin(result.labels, (1, 2)).sum())
    binary, labelmap = (saved(result, tmp_path, to) for to in ("dicom-sr", "dicom-sr:labelmap"))
    assert value(volumetric(binary, "whole"), codes_voxels())[0] == voxels
    assert volumetric(binary, "whole").referenced_segment[0].referenced_segment_numbers == [1]
    # No segment of a label map has two values.
    groups = labelmap.content.get_volumetric_roi_measurement_groups()
    assert [one.tracking_identifier for one in groups] == ["phantom: core"]
    assert groups[0].referenced_segment[0].referenced_segment_numbers == [2]
    (whole,) = labelmap.content.get_image_measurement_groups()
    assert whole.tracking_identifier == "phantom: whole"
    assert value(whole, codes_voxels())[0] == voxels
    assert [one for one in comments(whole) if "the region of the values 1, 2." in one]
    assert not [one for one in comments(groups[0]) if "region" in one]
    points = labelmap.content.get_planar_roi_measurement_groups()
    assert [one.tracking_identifier for one in points] == ["phantom: whole", "phantom: core"]


def codes_voxels():
    return hd.sr.CodedConcept("voxels", "99VOLSEG", "Number of voxels")


def test_a_label_without_voxels_has_volume_0_and_no_region(tmp_path):
    report = saved(result_of(tmp_path / "series"), tmp_path)
    (group,) = report.content.get_image_measurement_groups()
    assert group.tracking_identifier == "phantom: absent"
    assert {one.name.meaning: one.value for one in group.get_measurements()} == {"Number of voxels": 0, "Volume": 0}
    assert flags(group) == [FLAGS["empty"]]
    assert comments(group) == ["Volume 0: no voxel was given this label."]


def test_what_the_scan_cuts_off_is_a_lower_bound(tmp_path):
    report = saved(result_of(tmp_path / "series"), tmp_path)
    cut_off, whole = volumetric(report, "kidney_left"), volumetric(report)
    assert flags(cut_off) == [FLAGS["touches_border"]]
    assert "lower bound" in FLAGS["touches_border"].meaning
    assert any("lower bounds" in one for one in comments(cut_off))
    assert not flags(whole)
    assert not comments(whole)


def test_every_flag_has_a_code_whose_words_fit():
    assert set(FLAGS) | set(get_args(ScanFlag)) == set(IN_WORDS)
    assert len({code.value for code in FLAGS.values()}) == len(FLAGS)
    assert all(len(code.value) <= 16 and len(code.meaning) <= 64 for code in FLAGS.values())


@pytest.mark.parametrize(
    ("sop_class", "attributes", "name", "unit"),
    [
        (writers.CT, {"RescaleSlope": "1", "RescaleIntercept": "-1024"}, codes.DCM.AttenuationCoefficient, "[hnsf'U]"),
        (writers.CT, {"RescaleSlope": "1", "RescaleIntercept": "0", "RescaleType": "US"}, None, "[arb'U]"),
        (writers.MR, {}, codes.DCM.MRSignalIntensity, "1"),
        (writers.PET, {"RescaleSlope": "1", "RescaleIntercept": "0", "Units": "BQML"}, None, "[arb'U]"),
    ],
)
def test_intensity_is_in_the_unit_that_the_source_states(tmp_path, sop_class, attributes, name, unit):
    result = result_of(tmp_path / "series", sop_class=sop_class, **attributes)
    group = volumetric(saved(result, tmp_path))
    (mean,) = derived(group.get_measurements(), codes.SCT.Mean)
    assert (mean.name == name) if name else (mean.name.meaning == "Intensity")
    assert mean.unit.value == unit
    assert mean.value == pytest.approx(result.scan.channels[0][result.labels == 1].mean())


def test_segments_are_those_of_the_segmentation(tmp_path):
    result = result_of(tmp_path / "series", table=(*reversed(TABLE[:2]), TABLE[2]))
    for options in ("", ":labelmap", ":empty-frames"):
        report = saved(result, tmp_path, f"dicom-sr{options}")
        result.save(tmp_path / "x.seg.dcm", to=f"dicom-seg{options}")
        made = pydicom.dcmread(tmp_path / "x.seg.dcm")
        segments = {one.SegmentLabel: one for one in made.SegmentSequence}
        for name in ("ring", "kidney_left"):
            group = volumetric(report, name)
            segment = group.referenced_segment[0]
            assert segment.referenced_sop_instance_uid == made.SOPInstanceUID
            assert segment.referenced_sop_class_uid == made.SOPClassUID
            assert segment.referenced_segment_numbers == [segments[name].SegmentNumber]
            assert group.tracking_uid == segments[name].TrackingUID
            assert group.tracking_identifier == segments[name].TrackingID
            assert group.finding_type.value == segments[name].SegmentedPropertyTypeCodeSequence[0].CodeValue
            assert group.finding_category.value == segments[name].SegmentedPropertyCategoryCodeSequence[0].CodeValue


def test_a_side_is_that_of_the_place(tmp_path):
    table = (Label(name="ring", value=1), Label(name="kidney_left", value=2), Label(name="liver_tumor", value=3))
    labels = phantom()
    labels[0, 0, 0] = 3
    report = saved(result_of(tmp_path / "series", labels, table), tmp_path)
    (site,) = volumetric(report, "kidney_left").finding_sites
    assert (site.value, site.laterality) == (codes.SCT.Kidney, codes.SCT.Left)
    tumour = volumetric(report, "liver_tumor")
    assert tumour.finding_type == codes.SCT.Neoplasm
    assert [site.value for site in tumour.finding_sites] == [codes.SCT.Liver]
    assert volumetric(report).finding_sites == []


def test_evidence_is_every_file_of_the_source_and_the_segmentation(tmp_path):
    result = result_of(tmp_path / "series")
    report = saved(result, tmp_path)
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    found = {
        series.SeriesInstanceUID: {
            one.ReferencedSOPInstanceUID: one.ReferencedSOPClassUID for one in series.ReferencedSOPSequence
        }
        for series in study.ReferencedSeriesSequence
    }
    assert study.StudyInstanceUID == "1.2.3"
    assert found.pop("1.2.3.4") == {f"1.2.3.4.{k + 1}": writers.MR for k in range(9)}
    ((segmentation,),) = [list(one.values()) for one in found.values()]
    assert segmentation == "1.2.840.10008.5.1.4.1.1.66.4"
    group = volumetric(report)
    assert group.referenced_segment[1].value == "1.2.3.4"


def test_frames_of_a_multi_frame_source_are_named(tmp_path):
    result = result_of(tmp_path / "series", kind=writers.enhanced)
    report = saved(result, tmp_path)
    for group in (
        volumetric(report).referenced_segment[1:],
        report.content.get_image_measurement_groups()[0].source_images,
    ):
        (image,) = group
        assert image.referenced_sop_class_uid == writers.ENHANCED_MR
        assert image.referenced_sop_instance_uid == "1.2.3.4.1"
        assert image.referenced_frame_numbers == list(range(1, 10))


def test_an_empty_result_has_volume_0_and_the_reason_why_there_is_no_segmentation(tmp_path):
    result = result_of(tmp_path / "series", np.zeros((22, 18, 9), np.uint8))
    with pytest.raises(InputError, match="no label was found, and a DICOM Segmentation cannot be empty"):
        result.save(tmp_path / "x.seg.dcm", to="dicom-seg")
    instead, reasons = possible_formats([find_format("dicom-seg")], result)
    assert [one.name for one in instead] == ["dicom-sr"]
    assert "a DICOM Segmentation cannot be empty" in reasons["dicom-seg"]
    report = saved(result, tmp_path)
    groups = report.content.get_image_measurement_groups()
    assert [one.get_measurements(codes.SCT.Volume)[0].value for one in groups] == [0, 0, 0]
    assert not report.content.get_volumetric_roi_measurement_groups()
    assert "No segmentation: no label was found, and a DICOM Segmentation cannot be empty." in comments(report.content)
    assert "66.4" not in (tmp_path / "x.sr.dcm").read_bytes().decode("latin-1")


def test_without_a_known_size_there_are_no_lengths_and_volumes_but_the_reason(tmp_path):
    result = result_of(tmp_path / "series")
    reason = "its header states no unit of length"
    measures = [
        type(one)(one.name, one.value, one.voxels, None, reason if one.voxels else one.reason, one.flags)
        for one in result.measures
    ]
    result = type(result)(result.labels, tuple(measures), (), result.scan, result.shown, result.run)
    report = saved(result, tmp_path)
    group = volumetric(report)
    assert {one.name.meaning for one in group.get_measurements()} == {"Number of voxels", "MR signal intensity"}
    assert comments(group) == [f"No volume: {reason}."]
    assert not report.content.get_planar_roi_measurement_groups()


def test_what_made_it_and_how_far_it_is_checked(tmp_path):
    report = saved(result_of(tmp_path / "series", scan_flags=["intensity_outside_training_range"]), tmp_path)
    assert (report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag) == (
        *("COMPLETE", "UNVERIFIED"),
        "PRELIMINARY",
    )
    said = texts(report.content)
    assert ("Algorithm Name", "phantom") in said
    assert ("Algorithm Version", SHA) in said
    assert comments(report.content)[-2:] == [
        "Research use only, not for diagnosis.",
        "The scan intensity is outside the range of the training scans.",
    ]
    assert ("Device Observer Name", "volseg") in said
    (scheme,) = report.CodingSchemeIdentificationSequence
    assert scheme.CodingSchemeDesignator == "99VOLSEG"


def test_a_source_without_frame_of_reference_is_said(tmp_path):
    report = saved(result_of(tmp_path / "series", FrameOfReferenceUID=None), tmp_path)
    assert any("states no FrameOfReferenceUID" in one for one in comments(report.content))
    assert report.content.get_planar_roi_measurement_groups()


@pytest.mark.parametrize(
    ("name", "stated", "expected"),
    [
        ("Niere links, Größe", "ISO_IR 100", "ISO_IR 100"),
        ("肝臓", "ISO_IR 100", "ISO_IR 192"),
        ("a\\\\b\nc" + "d" * 80, None, None),
    ],
)
def test_names_of_labels_beyond_ascii_and_beyond_64_characters(tmp_path, name, stated, expected):
    table = (Label(name=name, value=1), Label(name="kidney_left", value=2))
    attributes = {"SpecificCharacterSet": stated} if stated else {}
    report = saved(result_of(tmp_path / "series", table=table, **attributes), tmp_path)
    assert report.get("SpecificCharacterSet") == expected
    found = [one.finding_type.meaning for one in report.content.get_volumetric_roi_measurement_groups()]
    assert len(found) == 2
    assert found[0] == (name if stated else "a  b c" + "d" * 58)


def test_two_runs_give_the_same_bytes(tmp_path):
    files = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        saved(result_of(tmp_path / name / "series"), tmp_path / name)
        files.append((tmp_path / name / "x.sr.dcm").read_bytes())
    assert files[0] == files[1]
    uids = re.findall(rb"1\.2\.826\.0\.1\.3680043[0-9.]*", files[0])
    assert not uids


def test_the_patient_is_that_of_the_source(tmp_path):
    report = saved(result_of(tmp_path / "series"), tmp_path)
    assert (report.PatientName, report.PatientID, report.StudyInstanceUID) == ("Secret^Name", "P1", "1.2.3")
    assert not any("Secret" in text for _, text in texts(report.content))


@pytest.mark.skipif(shutil.which("dsrdump") is None, reason="dsrdump (dcmtk) is not installed")
def test_dcmtk_prints_it(tmp_path):
    saved(result_of(tmp_path / "series"), tmp_path)
    done = subprocess.run(["dsrdump", str(tmp_path / "x.sr.dcm")], capture_output=True, text=True, check=True)
    assert "Comprehensive 3D SR Document" in done.stdout
    assert re.search(r'NUM:\(,,"Volume"\)="[0-9.]+" \(mL,UCUM', done.stdout)
    assert "SCOORD3D" in done.stdout


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize("kind", [writers.classic, writers.enhanced])
def test_dciodvfy_knows_all_but_the_private_scheme(tmp_path, kind):
    saved(result_of(tmp_path / "series", kind=kind), tmp_path)
    done = subprocess.run(["dciodvfy", str(tmp_path / "x.sr.dcm")], capture_output=True, text=True)
    lines = {line for line in done.stderr.splitlines() if "<99VOLSEG>" not in line}
    assert lines == {"Comprehensive3DSR"}


def test_formats_without_a_picture_do_not_load_what_draws():
    script = (
        "import sys\n"
        "from volseg.api.outputs import find_format, format_names\n"
        "for name in sorted(set(format_names()) - {'preview', 'dicom-sc'}): find_format(name)\n"
        "print(sorted(name for name in sys.modules if name.partition('.')[0] == 'matplotlib'))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
