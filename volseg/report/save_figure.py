"""Saving matplotlib figures."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def save_figure(figure: Figure, target: Path | IO[bytes], **options: Any) -> None:
    """`Figure.savefig` without its warnings about characters missing from the font, which are drawn as boxes."""
    with any_character():
        figure.savefig(target, **options)


def pixels_of(figure: Figure, dpi: float) -> np.ndarray:
    """The figure as (rows, columns, 3) uint8, red, green and blue; characters as in `save_figure`."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    with any_character():
        canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3].copy()


@contextmanager
def any_character() -> Iterator[None]:
    """No warnings about characters missing from the font."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield
