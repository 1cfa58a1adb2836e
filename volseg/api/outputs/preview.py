"""A picture of a result: three planes of the scan, overlaid with the labels."""

from pathlib import Path
from typing import Any

from volseg.report.preview import save_preview

SUFFIX = ".png"


def write(result: Any, path: Path) -> None:
    """Draw a `volseg.Result` as a PNG file.

    Raises:
        ResourceError: the disk is full or not writable.
    """
    scan = result.scan
    save_preview(scan.channels[0], result.labels, scan.geometry, result.shown, path, is_size_known=not scan.unstated)
