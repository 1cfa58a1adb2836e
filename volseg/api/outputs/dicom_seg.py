"""DICOM Segmentation: the labels as segments of one object, on the slices of the source series."""

from pathlib import Path
from typing import Any

from volseg.dicom.about import about_result
from volseg.dicom.objects import write as write_object
from volseg.dicom.segmentation import segmentation
from volseg.dicom.source import source_of

SUFFIX = ".seg.dcm"
NEEDS_DICOM = True
INSTEAD = "dicom-sr"
OPTIONS = {
    "labelmap": "one segmentation of type LABELMAP instead of a BINARY frame per slice and label",
    "empty-frames": "keep the frames of slices without a label",
}


def write(result: Any, path: Path, options: frozenset[str] = frozenset()) -> None:
    """Write the labels of a `volseg.Result` as a DICOM Segmentation.

    Raises:
        InputError: the scan is no DICOM series.
        ResourceError: the disk is full or not writable.
    """
    about = about_result(result).with_options(options)
    write_object(segmentation(result.labels, about, "labelmap" in options, "empty-frames" in options), path)


def warnings(result: Any) -> tuple[str, ...]:
    """What has to be assumed about the series."""
    return source_of(result.scan).warnings


def reason_for_none(result: Any) -> str:
    """Why there is no segmentation: it would have no segment and no frame."""
    return (
        ""
        if any(one.voxels for one in result.measures)
        else (f"{result.scan.source}: no label was found, and a DICOM Segmentation cannot be empty, so there is none.")
    )
