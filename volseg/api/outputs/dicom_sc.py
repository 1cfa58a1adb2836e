"""A picture of a result as a DICOM Secondary Capture image: the preview, with flags and the model's name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from volseg.dicom.about import about_result
from volseg.dicom.capture import secondary_capture
from volseg.dicom.objects import NOT_FOR_DIAGNOSIS
from volseg.dicom.objects import write as write_object
from volseg.dicom.source import source_of
from volseg.inference.quality import IN_WORDS
from volseg.report.preview import DPI, draw_preview
from volseg.report.save_figure import pixels_of
from volseg.text import first_few

SUFFIX = ".sc.dcm"
NEEDS_DICOM = True
_MOST_ROWS = 20  # of the legend
_MOST_NAMES = 12  # of labels with one flag


def write(result: Any, path: Path) -> None:
    """Draw a `volseg.Result` as a DICOM Secondary Capture image.

    Raises:
        InputError: the scan is no DICOM series.
        ResourceError: the disk is full or not writable.
    """
    about, scan = about_result(result), result.scan
    figure = draw_preview(
        scan.channels[0],
        result.labels,
        scan.geometry,
        result.shown,
        title=f"{NOT_FOR_DIAGNOSIS} volseg, model {about.model}",
        is_size_known=not scan.unstated,
        notes=list(_notes(result)),
        most_rows=_MOST_ROWS,
    )
    write_object(secondary_capture(pixels_of(figure, DPI), about), path)


def _notes(result: Any) -> Iterator[str]:
    """The flags in words, each with the labels that have it."""
    for flag, words in IN_WORDS.items():
        names = [one.name for one in result.measures if flag in one.flags]
        if flag == "empty" and len(names) == len(result.measures):
            yield "No label was found in this scan."
        elif names or flag in result.scan_flags:
            listed = f": {first_few(names, _MOST_NAMES)}" if names else ""
            yield f"{words[0].upper()}{words[1:]}{listed}."
    yield from result.suspicions


def warnings(result: Any) -> tuple[str, ...]:
    """What has to be assumed about the series."""
    return source_of(result.scan).warnings
