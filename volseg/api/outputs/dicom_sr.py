"""DICOM Structured Report: volume, intensity, size and position of each label, with its flags."""

from pathlib import Path
from typing import Any

from volseg.api.outputs import dicom_seg
from volseg.dicom.about import about_result
from volseg.dicom.objects import write as write_object
from volseg.dicom.report.measurement_report import measurement_report, segmentation_of
from volseg.dicom.report.measurements import measure_labels
from volseg.dicom.source import source_of
from volseg.inference.quality import IN_WORDS

SUFFIX = ".sr.dcm"
NEEDS_DICOM = True
# Its segments are those of the segmentation that is written with it.
FOLLOWS = "dicom-seg"
OPTIONS = {
    name: f"refer to the segmentation of dicom-seg:{name} in place of that of dicom-seg" for name in dicom_seg.OPTIONS
}


def write(result: Any, path: Path, options: frozenset[str] = frozenset()) -> None:
    """Write the measurements of a `volseg.Result` as a DICOM Structured Report.

    Raises:
        InputError: the scan is no DICOM series.
        ResourceError: the disk is full or not writable.
    """
    about, scan = about_result(result).with_options(options), result.scan
    # Of several channels, the first is the series that the report refers to.
    numbers = measure_labels(result.labels, scan.channels[0], scan.geometry, result.shown)
    notes = [*about.source.warnings, *(f"The {IN_WORDS[flag]}." for flag in result.scan_flags), *result.suspicions]
    segmentation = None
    if not dicom_seg.reason_for_none(result):
        segmentation = segmentation_of(about, "labelmap" in options)
    else:
        notes.append("No segmentation: no label was found, and a DICOM Segmentation cannot be empty.")
    write_object(measurement_report(about, result.measures, numbers, segmentation, notes), path)


def warnings(result: Any) -> tuple[str, ...]:
    """What has to be assumed about the series."""
    return source_of(result.scan).warnings
