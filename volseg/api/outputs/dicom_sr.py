"""DICOM Structured Report: volume, intensity, size and position of each label, with its flags."""

from pathlib import Path
from typing import Any

from volseg.api.outputs import dicom_seg
from volseg.dicom.about import About, about_result
from volseg.dicom.measurement_report import SegmentReference, measurement_report
from volseg.dicom.measurements import measure_labels
from volseg.dicom.objects import write as write_object
from volseg.dicom.segmentation import BINARY, LABELMAP
from volseg.inference.quality import IN_WORDS

SUFFIX = ".sr.dcm"
NEEDS_DICOM = True
OPTIONS = {
    name: f"refer to the segmentation of dicom-seg:{name} in place of that of dicom-seg" for name in dicom_seg.OPTIONS
}


def write(result: Any, path: Path, options: frozenset[str] = frozenset()) -> None:
    """Write the measurements of a `volseg.Result` as a DICOM Structured Report.

    Raises:
        InputError: the scan is no DICOM series.
        ResourceError: the disk is full or not writable.
    """
    about, scan = about_result(result), result.scan
    # Of several channels, the first is the series that the report refers to.
    numbers = measure_labels(result.labels, scan.channels[0], scan.geometry, result.shown)
    reason = dicom_seg.reason_for_none(result)
    segmentation = None if reason else _segmentation(about.with_options(options), options)
    notes = [f"The {IN_WORDS[flag]}." for flag in result.scan_flags]
    if reason:
        notes.append("No segmentation: no label was found, and a DICOM Segmentation cannot be empty.")
    report = measurement_report(about.with_options(options), result.measures, numbers, segmentation, notes)
    write_object(report, path)


def _segmentation(about: About, options: frozenset[str]) -> SegmentReference:
    """The segmentation that dicom-seg writes of the same result."""
    kind, identity = (LABELMAP if "labelmap" in options else BINARY), about.identity
    return SegmentReference(kind.sop_class, identity.uid(kind.name, "instance"), identity.uid(kind.name, "series"))
