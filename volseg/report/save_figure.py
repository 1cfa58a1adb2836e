"""Saving matplotlib figures."""

import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def save_figure(figure: Figure, target: Path | IO[bytes], **options: Any) -> None:
    """`Figure.savefig` without its warnings about characters missing from the font, which are drawn as boxes."""
    accept_any_character()
    figure.savefig(target, **options)


def pixels_of(figure: Figure, dpi: float) -> np.ndarray:
    """The figure as (rows, columns, 3) uint8, red, green and blue; characters as in `save_figure`."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    accept_any_character()
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3].copy()


def accept_any_character() -> None:
    """No warnings about characters missing from the font, a line feed among them.

    The filter stays, because a filter that is taken back would change those of other threads.
    """
    warnings.filterwarnings("ignore", "(?s)Glyph .* missing from font")
