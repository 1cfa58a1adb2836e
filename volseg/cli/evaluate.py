"""volseg evaluate and volseg compare."""

from pathlib import Path
from typing import Annotated, Any

import typer

from volseg.cli.app import Json, app, figure
from volseg.cli.console import guarded, show_json, show_line, show_table
from volseg.text import counted

# Rows of the table of the worst cases.
WORST = 5
Surface = Annotated[
    str, typer.Option(help="surface-distance, monai or metrics-reloaded: whose definition of distances")
]
Tolerance = Annotated[float, typer.Option("--tolerance-mm", help="of the normalised surface Dice")]


@app.command()
@guarded
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="a label image or a folder of them")],
    references: Annotated[Path, typer.Argument(help="its reference or a folder of them")],
    *,
    labels: Annotated[Path | None, typer.Option(help="names and values: a dataset.json, JSON or YAML")] = None,
    output: Annotated[Path | None, typer.Option(help="report.json; a .csv is written next to it")] = None,
    surface: Surface = "surface-distance",
    tolerance_mm: Tolerance = 1.0,
    lesions: Annotated[
        str | None, typer.Option(help="overlap, brats2023 or cc: the rule by which lesions are matched")
    ] = None,
    as_json: Json = False,
) -> int:
    """Compare label images with references: overlap, distances and volumes per case and label."""
    from volseg.api.evaluation import evaluate as compare

    document = compare(
        predictions, references, labels, output, surface=surface, tolerance_mm=tolerance_mm, lesions=lesions
    )
    if as_json:
        show_json(document)
        return 0
    keys = ("hausdorff95_mm", "assd_mm", "surface_dice", "volume_difference_ml")
    mean, middle, interval = (document[part]["labels"] for part in ("mean", "median", "interval"))
    rows = [
        (name, row["cases"], row["missed"], row["dice"], *_spread(middle, interval, name), *(row[key] for key in keys))
        for name, row in mean.items()
    ]
    measures = ("Dice", "median", "95 % interval", "HD95 mm", "ASSD mm", f"NSD {tolerance_mm:g} mm", "difference mL")
    show_table(f"Means over {counted(len(document['cases']), 'case')}", ("label", "cases", "missed", *measures), rows)
    _show_worst(document["cases"])
    if lesions:
        _show_lesions(document, lesions)
    show_line(f"mean foreground Dice: {figure(document['mean']['foreground_dice'])}")
    return 0


def _spread(middle: dict[str, Any], interval: dict[str, Any], label: str) -> tuple[float | None, str | None]:
    """The median Dice of a label and the interval of its mean, where it is in any case."""
    found = interval.get(label, {}).get("dice")
    return middle.get(label, {}).get("dice"), found and f"{found[0]:.4f} to {found[1]:.4f}"


def _show_worst(cases: list[dict[str, Any]]) -> None:
    """Print the cases and labels with the lowest Dice, where there are several."""
    rows = [
        (case["name"], label, row["dice"], row["hausdorff95_mm"], row["volume_difference_ml"])
        for case in cases
        for label, row in case["labels"].items()
        if row["dice"] is not None
    ]
    if len(rows) > 1:
        rows.sort(key=lambda row: row[2])
        show_table("Worst first", ("case", "label", "Dice", "HD95 mm", "difference mL"), rows[:WORST])


def _show_lesions(document: dict[str, Any], rule: str) -> None:
    """Print what is found of the lesions of each label, and of each quarter of them by volume."""
    keys = ("lesions", "lesions_found", "false_lesions", "lesion_sensitivity", "lesion_f1", "lesion_dice")
    rows = [(name, *(row[key] for key in keys)) for name, row in document["mean"]["labels"].items()]
    columns = ("label", "lesions", "found", "false", "sensitivity", "F1", "lesion Dice")
    show_table(f"Lesions per case, matched by {rule}", columns, rows)
    quarters = [
        (name, f"{row['from_ml']:.3g} to {row['to_ml']:.3g}", row["lesions"], row["found"])
        for name, parts in document["lesions"]["labels"].items()
        for row in parts
    ]
    show_table("Lesions of all cases by volume", ("label", "mL", "lesions", "found"), quarters)


@app.command()
@guarded
def compare(
    predictions: Annotated[list[Path], typer.Argument(help="folders of label images, one per model")],
    *,
    references: Annotated[Path, typer.Option(help="a folder of references")],
    labels: Annotated[Path | None, typer.Option(help="names and values: a dataset.json, JSON or YAML")] = None,
    output: Annotated[Path | None, typer.Option(help="a folder for comparison.json, .csv and .html")] = None,
    surface: Surface = "surface-distance",
    tolerance_mm: Tolerance = 1.0,
    as_json: Json = False,
) -> int:
    """Compare models on the same cases: paired differences, and a ranking that says what cannot be told apart."""
    from volseg.api.evaluation import compare as compare_models
    from volseg.report.comparison_page import TITLES

    document = compare_models(predictions, references, labels, output, surface=surface, tolerance_mm=tolerance_mm)
    if as_json:
        show_json(document)
        return 0
    for measure, found in document["measures"].items():
        ranking = [(row["rank"], row["model"], row["mean"], row["low"], row["high"]) for row in found["ranking"]]
        show_table(f"Mean {TITLES[measure]}", ("rank", "model", "mean", "95 % from", "to"), ranking)
        pairs = [
            (row["first"], row["second"], row["difference"], row["p_holm"], row["winner"] or "not distinguishable")
            for row in found["pairs"]
        ]
        show_table(f"Differences in {TITLES[measure]}", ("first", "second", "difference", "p (Holm)", "better"), pairs)
    return 0
