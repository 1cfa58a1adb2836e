"""Figures to files."""

import warnings
from pathlib import Path
from typing import IO, Any

from matplotlib.figure import Figure


def save_figure(figure: Figure, target: Path | IO[bytes], **options: Any) -> None:
    """`Figure.savefig`, without a warning for each character that the font lacks: it draws a box in its place."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(target, **options)
