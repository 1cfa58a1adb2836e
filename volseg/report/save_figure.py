"""Saving matplotlib figures."""

import warnings
from pathlib import Path
from typing import IO, Any

from matplotlib.figure import Figure


def save_figure(figure: Figure, target: Path | IO[bytes], **options: Any) -> None:
    """`Figure.savefig` without its warnings about characters missing from the font, which are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(target, **options)
