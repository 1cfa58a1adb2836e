"""The label image, in the image format of its name: NIfTI, MGH, NRRD or MetaImage."""

from pathlib import Path
from typing import Any

from volseg.data.io.writing import write_labels

SUFFIX = None


def write(result: Any, path: Path) -> None:
    """Write the labels of a `volseg.Result` on the grid of its scan.

    Raises:
        UsageError: the suffix of `path` is no image format.
        ResourceError: the disk refused the bytes.
    """
    write_labels(result.labels, result.scan, path)
