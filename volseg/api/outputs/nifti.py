"""The label image, in the format of its suffix: NIfTI, MGH, NRRD or MetaImage."""

from pathlib import Path
from typing import Any

from volseg.data.io.writing import write_labels

SUFFIX = None


def write(result: Any, path: Path) -> None:
    """Write the labels of a `volseg.Result` in the space of its scan.

    Raises:
        UsageError: the suffix of `path` is not that of an image format.
        ResourceError: the disk is full or not writable.
    """
    write_labels(result.labels, result.scan, path)
