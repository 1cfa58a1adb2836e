"""One colour per label, the same in every figure and table."""

import colorsys
from collections.abc import Sequence

from volseg.config import Label

Colour = tuple[int, int, int]

# Okabe and Ito, "Color Universal Design" (2008), without its black, which a dark scan would hide.
_OKABE_ITO: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
_GOLDEN_RATIO = 0.6180339887498949
_VALUES = (1.0, 0.75, 0.9)
_SATURATIONS = (0.55, 0.85)


def colour_at(index: int) -> Colour:
    """The colour of the label at `index` (from 0). It depends only on the index, so it never changes.

    Returns:
        Red, green, blue, 0 to 255.
    """
    if index < len(_OKABE_ITO):
        return _OKABE_ITO[index]
    step = index - len(_OKABE_ITO)
    # Steps by the golden ratio space the hues evenly for any number of labels.
    hue = step * _GOLDEN_RATIO % 1.0
    rgb = colorsys.hsv_to_rgb(hue, _SATURATIONS[step % 2], _VALUES[step % 3])
    return (round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2]))


def label_colours(labels: Sequence[Label]) -> list[Colour]:
    """The colour of each label: its own if it has one, else that of its index in the sequence.

    Returns:
        Red, green, blue, 0 to 255, in the order of `labels`.
    """
    return [label.colour or colour_at(index) for index, label in enumerate(labels)]
