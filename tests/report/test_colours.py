"""Colours of labels: fixed, distinct, overridden by a label's own."""

import colorsys

import pytest

from volseg.config import Label
from volseg.report.colours import colour_at, label_colours


def test_first_colours_are_okabe_ito():
    assert [colour_at(index) for index in (0, 1, 2, 6)] == [
        (230, 159, 0),
        (86, 180, 233),
        (0, 158, 115),
        (204, 121, 167),
    ]


@pytest.mark.parametrize("others", [0, 1, 100])
def test_a_place_keeps_its_colour_whatever_follows(others):
    labels = [Label(name=f"label {value}", value=value) for value in range(1, 13)]
    more = [Label(name=f"more {value}", value=1000 + value) for value in range(others)]
    assert label_colours([*labels, *more])[:12] == label_colours(labels)


def test_own_colour_is_kept_and_black_is_a_colour():
    labels = [Label(name="a", value=1), Label(name="b", value=2, colour=(0, 0, 0)), Label(name="c", value=3)]
    assert label_colours(labels) == [colour_at(0), (0, 0, 0), colour_at(2)]


def test_many_colours_differ_and_none_is_dark():
    colours = [colour_at(index) for index in range(120)]
    assert len(set(colours)) == 120
    assert all(0 <= part <= 255 for colour in colours for part in colour)
    assert min(max(colour) for colour in colours) >= 158


def test_hues_past_the_named_ones_fill_the_circle():
    hues = sorted(colorsys.rgb_to_hsv(*(part / 255 for part in colour_at(index)))[0] for index in range(7, 7 + 34))
    gaps = [after - before for before, after in zip(hues, [*hues[1:], hues[0] + 1], strict=True)]
    assert max(gaps) < 2.7 / 34  # golden-ratio steps leave no gap above phi^2 times an even spacing
