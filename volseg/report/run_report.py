"""The report of a training run as one self-contained HTML page: scores, curves, cases, plan.

Charts are embedded SVG images with a transparent background and mid-grey axes, so that they are readable on light and
dark pages. All text from the run's files is escaped.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from volseg.config import ComponentRule, rules_in_words
from volseg.documents import read_json, read_or
from volseg.errors import InputError
from volseg.files import access_to, read_json_lines, write_text
from volseg.report.colours import colour_at
from volseg.report.page import html_page
from volseg.report.save_figure import save_figure

_POINTS = 1500  # of a curve; more would not be visible
_SMOOTHED_OVER = 40  # the loss is averaged over 1/40 of the run
_BINS = 25
_NAMED_CURVES = 8  # more names would cover the chart
_AXIS = "#7d858e"
_COMMENT = re.compile(r"(?m)(?<!\S)#.*$")


def write_run_report(run: Path) -> None:
    """Write RUN/report.html from the files of the run folder; a section whose file is missing says so.

    Args:
        run: a run folder, with any of plan.yaml, config.yaml, metrics.jsonl and validation.json.

    Raises:
        ResourceError: the file could not be written.
        InputError: a file of the run cannot be read.
    """
    records = read_json_lines(run / "metrics.jsonl")
    validation = _read_scores(run / "validation.json")
    parts = [
        _headline(records, validation),
        "<h2>Training</h2>",
        _training(records, validation),
        "<h2>Validation, worst case first</h2>",
        _postprocessing(validation),
        _cases(validation),
        "<h2>Dice per label</h2>",
        _histograms(validation),
        "<h2>Plan with reasons</h2>",
        _yaml_block(run / "plan.yaml"),
        "<details><summary>Configuration</summary>",
        _yaml_block(run / "config.yaml"),
        "</details>",
    ]
    write_text(run / "report.html", html_page(run.resolve().name, parts))


# ---- reading the run


def _read_scores(path: Path) -> dict[str, Any] | None:
    """The document in a run's validation.json; None if it is missing."""
    if not path.exists():
        return None
    # Ten times the largest datasets of today.
    document: dict[str, Any] = read_or(
        InputError, partial(read_json, times=4), path, "readable JSON", "Check its permissions and its disk."
    )
    return document


# ---- sections


def _headline(records: Sequence[Mapping[str, Any]], validation: Mapping[str, Any] | None) -> str:
    """The main numbers of the run: mean Dice, Dice per label, steps, minutes."""
    cards = []
    if validation:
        mean, deviations = validation["mean"], validation["spread"]["labels"]
        cards.append((_dice_text(mean["foreground_dice"]), "mean foreground Dice"))
        for label, measures in mean["labels"].items():
            deviation = deviations[label]["dice"]
            text = _dice_text(measures["dice"])
            cards.append((text if deviation is None else f"{text} ± {deviation:.3f}", label))
    if records:
        cards.append((f"{records[-1]['step']:,}", "steps"))
        cards.append((f"{records[-1]['seconds'] / 60:.1f}", "minutes"))
    shown = [f"<div class='card'><b>{escape(value)}</b><span>{escape(what)}</span></div>" for value, what in cards]
    return f"<div class='cards'>{''.join(shown)}</div>".replace("'card'", "'card first'", 1)


def _training(records: Sequence[Mapping[str, Any]], validation: Mapping[str, Any] | None) -> str:
    """Two charts: loss and validation Dice over time."""
    if not records:
        return _missing("metrics.jsonl has no completed step, so there are no curves.")
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    seconds = np.array([record["seconds"] for record in records])
    loss = np.array([record["loss"] for record in records])
    width = max(1, len(loss) // _SMOOTHED_OVER)
    step = -(-len(loss) // _POINTS)
    left.plot(seconds[::step], loss[::step], color=_AXIS, alpha=0.45, linewidth=0.8, label="each step")
    left.plot(seconds[::step], _smoothed(loss, width)[::step], color=_rgb(0), linewidth=2, label=f"mean of {width}")
    _style_axes(left, "loss", legend=True)

    points = [(record["seconds"], record) for record in records if "dice" in record]
    if validation:
        scores = {label: measures["dice"] for label, measures in validation["mean"]["labels"].items()}
        points.append((seconds[-1], {"dice": scores, "foreground_dice": validation["mean"]["foreground_dice"]}))
    times = [time for time, _ in points]
    labels = list(points[-1][1]["dice"]) if points else []
    for index, label in enumerate(labels):
        # NaN (a gap in the curve) where a label counts in no case.
        dice = np.array([record["dice"].get(label) for _, record in points], dtype=float)
        right.plot(
            times,
            dice,
            "o-",
            color=_rgb(index),
            linewidth=1.3,
            markersize=3.5,
            label=label if len(labels) <= _NAMED_CURVES else None,
        )
    mean = np.array([record["foreground_dice"] for _, record in points], dtype=float)
    right.plot(times, mean, "o-", color=_AXIS, linewidth=2.2, markersize=4, label="mean foreground")
    _style_axes(right, "validation Dice", legend=bool(points))
    return _inline_svg(figure, "Loss and validation Dice over time in seconds")


def _postprocessing(validation: Mapping[str, Any] | None) -> str:
    """The postprocessing rules chosen on the validation cases."""
    if not validation:
        return ""
    rules = {name: ComponentRule(**rule) for name, rule in validation.get("postprocessing", {}).items()}
    return f"<p>{escape(f'Postprocessing: {rules_in_words(rules)}.')}</p>"


def _cases(validation: Mapping[str, Any] | None) -> str:
    """A table of cases, sorted by mean Dice, with a bar per label."""
    if not validation:
        return _missing("validation.json is missing, so there are no cases to list.")
    labels = list(validation["mean"]["labels"])
    scored = [(_case_mean(case), case) for case in validation["cases"]]
    scored.sort(key=lambda pair: (pair[0] is None, pair[0]))
    head = "".join(f"<th>{escape(name)}</th>" for name in ("case", "mean Dice", *labels))
    rows = []
    for mean, case in scored:
        cells = [f"<td>{escape(case['name'])}</td><td>{_dice_text(mean)}</td>"]
        cells += [_bar_cell(case["labels"][label]["dice"], index) for index, label in enumerate(labels)]
        rows.append(f"<tr>{''.join(cells)}</tr>\n")
    return f"<div class='wide'><table><tr>{head}</tr>\n{''.join(rows)}</table></div>"


def _histograms(validation: Mapping[str, Any] | None) -> str:
    """Histograms of Dice over cases, one small chart per label, all with the same axes."""
    if not validation:
        return _missing("validation.json is missing, so there are no histograms.")
    labels = list(validation["mean"]["labels"])
    dice = {label: [case["labels"][label]["dice"] for case in validation["cases"]] for label in labels}
    scores = {label: [value for value in values if value is not None] for label, values in dice.items()}
    lowest = min((value for values in scores.values() for value in values), default=0.0)
    edges = np.linspace(min(np.floor(lowest * 10) / 10, 0.9), 1, _BINS + 1)
    columns = min(len(labels), 3)
    rows = -(-len(labels) // columns)
    figure = Figure(figsize=(10, 2.3 * rows + 0.3), layout="constrained")
    charts = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for index, (label, values) in enumerate(scores.items()):
        charts[index].hist(values, bins=edges, color=_rgb(index))
        _style_axes(charts[index], "" if index % columns else "cases", across="Dice")
        charts[index].yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        charts[index].set_title(label, color=_AXIS, fontsize=10, parse_math=False)
    for unused in charts[len(labels) :]:
        unused.set_axis_off()
    return _inline_svg(figure, "Histogram of Dice over cases, per label")


def _yaml_block(path: Path) -> str:
    """A YAML file with its comments in a fainter colour."""
    if not path.exists():
        return _missing(f"{path.name} is missing.")
    with access_to(path):
        text = _COMMENT.sub(r"<i>\g<0></i>", escape(path.read_text(encoding="utf-8", errors="replace")))
    return f"<pre>{text}</pre>"


# ---- parts


def _missing(sentence: str) -> str:
    """The text of a section whose data is missing."""
    return f"<p>{escape(sentence)}</p>"


def _dice_text(dice: float | None) -> str:
    """A Dice with three decimals."""
    return "none" if dice is None else f"{dice:.3f}"


def _case_mean(case: Mapping[str, Any]) -> float | None:
    """Mean Dice over the labels that count in this case."""
    dice = [measures["dice"] for measures in case["labels"].values() if measures["dice"] is not None]
    return fmean(dice) if dice else None


def _bar_cell(dice: float | None, index: int) -> str:
    """A table cell with a Dice and a bar of that length."""
    if dice is None:
        return "<td>none</td>"
    bar = f"<i style='width:{100 * dice:.1f}%;background:{_rgb(index)}'></i>"
    return f"<td>{dice:.3f}<span class='bar'>{bar}</span></td>"


def _rgb(index: int) -> str:
    """A label's colour as #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*colour_at(index))


def _smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Moving average over `width` neighbours, fewer at the two ends."""
    window = np.ones(width)
    mean: np.ndarray = np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
    return mean


def _style_axes(axes: Any, up: str, across: str = "seconds", legend: bool = False) -> None:
    """Style axes so that they are readable on light and dark pages."""
    axes.set_xlabel(across, color=_AXIS)
    axes.set_ylabel(up, color=_AXIS)
    axes.tick_params(colors=_AXIS)
    axes.grid(color=_AXIS, alpha=0.2)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_AXIS)
    if legend:
        for text in axes.legend(frameon=False, labelcolor=_AXIS, fontsize=9).get_texts():
            text.set_parse_math(False)


def _inline_svg(figure: Figure, what: str) -> str:
    """A figure as an image embedded in the page."""
    svg = io.BytesIO()
    save_figure(figure, svg, format="svg", transparent=True, metadata={"Date": None})
    data = base64.b64encode(svg.getvalue()).decode("ascii")
    return f'<img alt="{escape(what)}" src="data:image/svg+xml;base64,{data}">'
