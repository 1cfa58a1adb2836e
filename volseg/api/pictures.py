"""The picture beside a result; apart from predicting, because drawing loads matplotlib."""

from pathlib import Path

from volseg.api.result import Result
from volseg.data.formats import beside
from volseg.report.preview import save_preview


def write_preview(result: Result, image: Path) -> None:
    """Draw three planes of a result to `<stem>.png` beside its label image."""
    save_preview(result.scan.channels[0], result.labels, result.scan.geometry, result.shown, beside(image, ".png"))
