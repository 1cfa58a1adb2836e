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
from volseg.modelfile import read_card
from volseg.modelfile.calibration import BINS, Calibration, LabelCalibration, Reliability
from volseg.report.colours import colour_at
from volseg.report.page import html_page, html_table
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
        run: a run folder, with any of plan.yaml, config.yaml, metrics.jsonl, validation.json and model.safetensors.

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
        "<h2>Can its probabilities be believed?</h2>",
        _calibration(_read_calibration(run / "model.safetensors")),
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


def _read_calibration(model: Path) -> Calibration | None:
    """The calibration in the card of a run's model; None if there is neither."""
    return read_card(model).calibration if model.exists() else None


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


def _calibration(known: Calibration | None) -> str:
    """How far the probabilities of the model can be believed, before and after calibration, in words and charts."""
    if known is None:
        return _missing(
            "There is no calibration, so results of this model state no expected Dice: training makes one where at "
            "least five validation cases have a label."
        )
    words = (
        "For every voxel the model states how probable each label is. The left chart compares this with the references "
        f"of the {known.cases} validation scans used, which the model was not trained on: of all voxels with a stated "
        "probability of 80 %, 80 % should have the label. Where the curve follows the dashed line, the model is right "
        "about itself. A flatter curve means that it is too sure of itself, a steeper one that it is too cautious. "
        "Voxels that are clearly background are left out.",
        "Expected calibration error, the mean distance from the dashed line: "
        f"{100 * known.before.error:.1f} percentage points before calibration, {100 * known.after.error:.1f} after it "
        f"(temperature {known.temperature:g}).",
    )
    return "".join(_text(one) for one in words) + _reliability(known.before, known.after) + _estimates(known.labels)


def _reliability(before: Reliability, after: Reliability) -> str:
    """Two charts over the stated probability: how many voxels have the label, and how many voxels there are."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot((0, 100), (0, 100), "--", color=_AXIS, linewidth=1, label="right about itself")
    for index, (name, one) in enumerate((("before", before), ("after calibration", after))):
        voxels = np.array(one.voxels, float)
        # NaN (a gap in the curve) where no voxel had such a probability.
        stated, found = (np.where(voxels > 0, 100 * np.array(row), np.nan) for row in (one.probability, one.frequency))
        left.plot(stated, found, "o-", color=_rgb(index), linewidth=1.6, markersize=4.5, label=name)
        edges = (np.arange(BINS) + 0.1 + 0.4 * index) * 100 / BINS
        right.bar(edges, voxels, 40 / BINS, align="edge", color=_rgb(index), label=name)
    across = "probability that the model states, %"
    _style_axes(left, "voxels with the label, %", across, legend=True)
    _style_axes(right, "voxels", across, legend=True)
    left.set(xlim=(0, 100), ylim=(0, 100))
    right.set_xlim(0, 100)
    if any(before.voxels) or any(after.voxels):
        right.set_yscale("log")
        right.set_ylim(bottom=1)
    return _inline_svg(figure, "Reliability diagrams before and after calibration, and the number of voxels")


def _estimates(labels: Mapping[str, LabelCalibration]) -> str:
    """A table of how far off the estimates of each label are on cases that took no part in their fit."""
    if not labels:
        return _missing("No label was found in a validation scan, so results state no expected Dice.")
    columns = ("label", "scans", "error of expected Dice", "on clean scans", "flagged below", "volumes in interval")
    rows = [
        (
            name,
            one.cases,
            *(
                "too few scans" if value is None else _dice_text(value)
                for value in (one.error, one.clean_error, one.low_confidence)
            ),
            "too few scans" if one.volume_coverage is None else f"{one.volume_coverage:.0%}",
        )
        for name, one in labels.items()
    ]
    words = (
        "Each result states the Dice that is expected of it, and an interval meant to hold 90 % of the true volumes. "
        "The table has how far the expected Dice was from the true one, on average over clean and degraded scans and "
        "over clean ones alone; the expected Dice below which a result is flagged as low_confidence; and how many true "
        "volumes were in their interval."
    )
    return _text(words) + html_table(columns, rows)


def _yaml_block(path: Path) -> str:
    """A YAML file with its comments in a fainter colour."""
    if not path.exists():
        return _missing(f"{path.name} is missing.")
    with access_to(path):
        text = _COMMENT.sub(r"<i>\g<0></i>", escape(path.read_text(encoding="utf-8", errors="replace")))
    return f"<pre>{text}</pre>"


# ---- parts


def _text(sentences: str) -> str:
    """A paragraph."""
    return f"<p>{escape(sentences)}</p>"


def _missing(sentence: str) -> str:
    """The text of a section whose data is missing."""
    return _text(sentence)


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
