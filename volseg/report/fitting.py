"""Text that fits: its width on the page as the font has it, shortened or in lines. Widths are inches."""

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from volseg.report.save_figure import accept_any_character

# Drawn glyphs are rounded to pixels, so a text may be this much wider than its outline.
_ROUNDING = 1.03
_POINTS = 72.0  # in an inch


def width_of(text: str, size: float, weight: str = "normal") -> float:
    """The width of a line of text at a font size in points."""
    accept_any_character()
    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size, weight=weight), False)
    return float(width) / _POINTS * _ROUNDING


def shortened(text: str, width: float, size: float, weight: str = "normal", tail: int = 0) -> str:
    """The text, or as much of its beginning as fits, then an ellipsis and its last `tail` characters."""
    if width_of(text, size, weight) <= width:
        return text
    end = "…" + text[len(text) - tail :]
    fits = 0
    while width_of(text[: fits + 1] + end, size, weight) <= width:
        fits += 1
    return text[:fits].rstrip() + end


def wrapped(text: str, width: float, size: float) -> list[str]:
    """The text in lines that fit; a word that does not is cut."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else ""
        if longer and width_of(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(shortened(word, width, size))
    return lines
