"""A picture of a result: three planes with the labels over the scan."""

from pathlib import Path
from typing import Any

from volseg.report.preview import save_preview

SUFFIX = ".png"


def write(result: Any, path: Path) -> None:
    """Draw a `volseg.Result` to a PNG.

    Raises:
        ResourceError: the disk refused the file.
    """
    save_preview(result.scan.channels[0], result.labels, result.scan.geometry, result.shown, path)
