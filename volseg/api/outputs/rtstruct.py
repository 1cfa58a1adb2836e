"""RT Structure Set: the labels as closed contours on the slices of the source series."""

from pathlib import Path
from typing import Any

from volseg.dicom.about import about_result
from volseg.dicom.objects import write as write_object
from volseg.dicom.source import source_of
from volseg.dicom.structures import structure_set

SUFFIX = ".rtstruct.dcm"
NEEDS_DICOM = True
OPTIONS = {"xor": "holes as contours of their own, combined by exclusive or, instead of keyholes"}


def write(result: Any, path: Path, options: frozenset[str] = frozenset()) -> None:
    """Write the labels of a `volseg.Result` as an RT Structure Set.

    Raises:
        InputError: the scan is no DICOM series.
        ResourceError: the disk is full or not writable.
    """
    about = about_result(result).with_options(options)
    write_object(structure_set(result.labels, about, "xor" in options), path)


def warnings(result: Any) -> tuple[str, ...]:
    """What has to be assumed about the series."""
    return source_of(result.scan).warnings
