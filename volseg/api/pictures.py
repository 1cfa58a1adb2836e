"""The picture beside a result; apart from predicting, because drawing loads matplotlib."""

from pathlib import Path

from volseg.api.result import Result
from volseg.data.formats import stem_of
from volseg.report.preview import save_preview


def preview_path(image: Path) -> Path:
    """Where the picture of a label image lies."""
    return image.with_name(stem_of(image) + ".png")


def write_preview(result: Result, image: Path) -> None:
    """Draw three planes of a result to `<stem>.png` beside its label image."""
    save_preview(result.scan.channels[0], result.labels, result.scan.geometry, result.shown, preview_path(image))
