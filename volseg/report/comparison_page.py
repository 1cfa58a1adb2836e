"""The comparison of several models as files: JSON, CSV and one HTML page."""

import csv
import io
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from volseg.files import require_writable, whole_files, write_json, write_text
from volseg.report.page import html_page, html_table

# The last to appear first: a reader of it finds the others of the same comparison.
FILES = ("comparison.json", "comparison.csv", "comparison.html")
TITLES = {"dice": "Dice", "surface_dice": "Normalised surface Dice", "hausdorff95_mm": "Hausdorff distance, 95 %, mm"}


def check_comparison_folder(folder: Path) -> None:
    """Reject a folder that the files of a comparison cannot be written to."""
    require_writable([folder / name for name in FILES])


def write_comparison(document: Mapping[str, Any], folder: Path) -> None:
    """Write comparison.json, comparison.csv and comparison.html; all of them appear, or none.

    Args:
        document: see `volseg.evaluation.comparison.compare_reports`.
        folder: made if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["case", "model", *document["measures"]])
    for case in document["cases"]:
        for model in document["models"]:
            writer.writerow([case, model, *(one["cases"][case][model] for one in document["measures"].values())])
    with whole_files(folder, FILES[0]) as made:
        write_text(made / FILES[1], table.getvalue())
        write_text(made / FILES[2], comparison_page(document))
        write_json(made / FILES[0], document)


def comparison_page(document: Mapping[str, Any]) -> str:
    """The page of what `volseg.evaluation.comparison.compare_reports` returns."""
    models = document["models"]
    surface = document.get("surface") or {}
    how = "".join(f" {name.replace('_', ' ')}: {value}." for name, value in surface.items() if value is not None)
    parts = [f"<p>{len(models)} models on {len(document['cases'])} cases. {NOTE}{escape(how)}</p>"]
    parts += [f"<p>{escape(warning)}</p>" for warning in document.get("warnings", ())]
    for measure, found in document["measures"].items():
        ranking = [
            (row["rank"], row["model"], row["mean"], _interval(row), row["median"], row["worst"])
            for row in found["ranking"]
        ]
        pairs = [
            (row["first"], row["second"], row["difference"], _interval(row), row["better"], row["worse"], row["p_holm"],
             row["winner"] or "cannot be told apart")
            for row in found["pairs"]
        ]  # fmt: skip
        labels = [(label, *(means[model] for model in models)) for label, means in found["labels"].items()]
        cases = sorted(found["cases"].items(), key=lambda one: _least(one[1]), reverse=measure == "hausdorff95_mm")
        parts += [
            f"<h2>{TITLES[measure]}</h2>",
            html_table(("rank", "model", "mean", "95 % interval", "median", "worst"), ranking),
            html_table(
                ("first", "second", "difference", "95 % interval", "cases better", "cases worse", "p", "better model"),
                pairs,
            ),
            html_table(("label", *models), labels),
            "<details><summary>Cases, worst first</summary>",
            html_table(("case", *models), [(name, *(scores[model] for model in models)) for name, scores in cases]),
            "</details>",
        ]
    return html_page("Comparison of models", parts)


NOTE = (
    "A case counts with the mean over its labels. Intervals are bootstrap intervals over cases; p is of the Wilcoxon "
    "signed-rank test, corrected by Holm's method. Models whose rank is the same cannot be told apart on these cases."
)


def _interval(row: Mapping[str, Any]) -> str:
    return "-" if row["low"] is None else f"{row['low']:.4g} to {row['high']:.4g}"


def _least(scores: Mapping[str, float | None]) -> float:
    """The mean of a case over models, to sort by."""
    known = [value for value in scores.values() if value is not None]
    return sum(known) / len(known) if known else float("nan")
