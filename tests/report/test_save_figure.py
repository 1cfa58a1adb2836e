import io
import warnings

from matplotlib.figure import Figure

from volseg.report.save_figure import save_figure


def test_characters_that_the_font_lacks_are_drawn_without_a_warning():
    figure = Figure()
    figure.text(0.5, 0.5, "brain \N{BRAIN}")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        save_figure(figure, picture := io.BytesIO(), format="svg")
    assert said == []
    assert b"</svg>" in picture.getvalue()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        figure.savefig(io.BytesIO(), format="svg")
    assert said
