"""Suspicions in the result, its record, its report and its picture."""

import json
import threading
import time
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from tests.dicom.test_capture import drawn
from tests.dicom.test_measurement_report import comments, saved
from tests.dicom.whole_results import result_of
from tests.suspicion.test_orientation import AFFINE, SURE, header, scan_of, search_of
from volseg import Segmenter
from volseg.api import segmenter as api
from volseg.config import ScanRanges
from volseg.errors import ResourceError
from volseg.suspicion import examine

RANGES = ScanRanges(spacing_mm=((2.0, 2.0),) * 3, extent_mm=((50.0, 90.0),) * 3, quantiles=(((-9.0, 9.0),) * 7,))
HALF_TURN = ((-1, 0, 0), (0, -1, 0), (0, 0, 1))


def segmenter_of(calibration=SURE, **changes) -> Segmenter:
    """A model that is sure of upright scans only."""
    search = search_of(calibration=calibration, **changes)
    return Segmenter(search.need.card, "0" * 64, search.labeller)


def test_a_usual_scan_has_no_suspicion_and_no_search(monkeypatch):
    monkeypatch.setattr(examine, "question_orientation", None)
    result = segmenter_of()((scan_of(), AFFINE))
    assert result.flags == ("rod: empty",)
    assert result.suspicions == ()
    assert "orientation" not in result.record["seconds"]


def test_a_poor_result_is_flagged_searched_and_timed_and_keeps_its_labels(tmp_path):
    segmenter, affine = segmenter_of(), header(HALF_TURN)
    result = segmenter((scan_of(), affine))
    assert result.flags == ("scan: orientation_suspect", "ball: low_confidence", "rod: empty")
    low, turned = result.warnings
    assert low.startswith("The expected Dice is low: ball 0.")
    assert "(usual: 0.90 or more)" in low
    assert "looks rotated by 180 degrees about the foot-head axis" in turned
    assert result.record["seconds"]["orientation"] > 0
    plain = segmenter_of(calibration=None)((scan_of(), affine))
    assert np.array_equal(result.labels, plain.labels)
    result.save(tmp_path / "out.nii.gz")
    record = json.loads((tmp_path / "out.json").read_text())
    assert (record["flags"], record["warnings"]) == (list(result.flags), list(result.warnings))


def test_models_without_calibration_are_as_before(monkeypatch):
    monkeypatch.setattr(examine, "question_orientation", None)
    result = segmenter_of(calibration=None)((scan_of(), header(HALF_TURN)))
    assert result.flags == ("rod: empty",)
    assert (result.warnings, result.record["seconds"].keys()) == ((), {"read", "prepare", "segment", "measure"})


def test_a_search_that_memory_ends_leaves_the_result(monkeypatch):
    def ends(search):
        raise ResourceError("no memory")

    monkeypatch.setattr(examine, "question_orientation", ends)
    result = segmenter_of()((scan_of(), header(HALF_TURN)))
    assert result.flags == ("ball: low_confidence", "rod: empty")
    assert "orientation" in result.record["seconds"]


def test_a_header_without_an_orientation_is_searched_like_any(tmp_path):
    image = nibabel.Nifti1Image(scan_of(), None)
    image.header.set_xyzt_units("mm")
    image.header["pixdim"][1:4] = 1.5, 1.5, 2.0
    image.header["sform_code"] = image.header["qform_code"] = 0
    nibabel.save(image, tmp_path / "upright.nii.gz")
    result = segmenter_of()(tmp_path / "upright.nii.gz")
    assert "scan: orientation_suspect" not in result.flags
    assert any("the orientation is unknown" in one for one in result.warnings)
    flipped = nibabel.Nifti1Image(scan_of()[::-1, ::-1], None, image.header)
    flipped.header["sform_code"] = flipped.header["qform_code"] = 0
    nibabel.save(flipped, tmp_path / "turned.nii.gz")
    found = segmenter_of()(tmp_path / "turned.nii.gz")
    assert "scan: orientation_suspect" in found.flags


@pytest.mark.parametrize(("factor", "flags"), [(1, ()), (2, ("scan: spacing_suspect",))])
def test_a_wrong_voxel_size_is_flagged_where_the_size_is_stated(tmp_path, factor, flags):
    segmenter = segmenter_of(calibration=None)
    plan = segmenter.card.plan.model_copy(update={"scan_ranges": replace_ranges(AFFINE)})
    segmenter = replace(segmenter, card=segmenter.card.model_copy(update={"plan": plan}))
    affine = AFFINE @ np.diag([factor, factor, factor, 1.0])
    assert tuple(one for one in segmenter((scan_of(), affine)).flags if one.startswith("scan")) == flags
    image = nibabel.Nifti1Image(scan_of(), affine)
    image.header.set_xyzt_units(0)
    nibabel.save(image, tmp_path / "unitless.nii.gz")
    assert not [one for one in segmenter(tmp_path / "unitless.nii.gz").flags if one.startswith("scan")]


def replace_ranges(affine: np.ndarray) -> ScanRanges:
    """Those of training scans of the size of `scan_of`."""
    spacing = np.diag(affine)[:3]
    extent = spacing * scan_of().shape
    return RANGES.model_copy(
        update={
            "spacing_mm": tuple((float(one), float(one)) for one in spacing),
            "extent_mm": tuple((float(one) - 5, float(one) + 5) for one in extent),
        }
    )


def test_report_and_picture_say_it(tmp_path, monkeypatch):
    sentence = "The scan looks rotated by 180 degrees about the foot-head axis."
    result = result_of(tmp_path / "series", scan_flags=["orientation_suspect"])
    measures = tuple(
        replace(one, flags=(*one.flags, "low_confidence", "side_mismatch")) if one.voxels else one
        for one in result.measures
    )
    result = replace(result, suspicions=(sentence,), measures=measures)
    said = comments(saved(result, tmp_path).content)
    assert said[-2:] == [
        "The scan looks rotated or mirrored against the orientation that its header states.",
        sentence,
    ]
    lines, _ = drawn(result, monkeypatch)
    assert sentence in lines
    assert any(line.startswith("Expected to overlap less with the truth than usual") for line in lines)
    assert any(line.startswith("Left and right are exchanged") for line in lines)


def test_several_scans_at_work_take_turns_to_be_searched_too_and_get_the_same_results(monkeypatch):
    segmenter = segmenter_of()
    forward, alone, most = type(segmenter.labeller.network).forward, threading.Lock(), []
    at_device: list[int] = []

    def counted(network, windows):
        with alone:
            at_device.append(1)
            most.append(len(at_device))
        time.sleep(0.002)
        try:
            return forward(network, windows)
        finally:
            with alone:
                at_device.pop()

    monkeypatch.setattr(type(segmenter.labeller.network), "forward", counted)
    scans = [(scan_of(), header(HALF_TURN))] * 4
    monkeypatch.setattr(api, "scans_at_once", lambda *_: 1)
    (expected, *_) = segmenter.map(scans)
    monkeypatch.setattr(api, "scans_at_once", lambda *_: 4)
    monkeypatch.setattr(api, "scans_at_device", lambda *_: 1)
    most.clear()
    for outcome in segmenter.map(scans):
        assert outcome.result.flags == expected.result.flags
        assert "scan: orientation_suspect" in outcome.result.flags
        assert outcome.result.suspicions == expected.result.suspicions
        assert np.array_equal(outcome.result.labels, expected.result.labels)
    assert max(most) == 1


def test_a_search_can_be_ended_between_two_windows():
    """Ctrl-C while several scans are at work comes to them through their progress."""
    told = []

    def show(stage, done, text):
        told.append((stage, done, text))
        if text == "orientation 1 of 24":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segmenter_of()((scan_of(), header(HALF_TURN)), show)
    assert told[-1] == ("segment", 1.0, "orientation 1 of 24")
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
