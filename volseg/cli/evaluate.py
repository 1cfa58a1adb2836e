"""volseg evaluate."""

from pathlib import Path
from typing import Annotated

import typer

from volseg.cli.app import Json, app, figure
from volseg.cli.console import guarded, show_json, show_line, show_table
from volseg.text import counted


@app.command()
@guarded
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="a label image or a folder of them")],
    references: Annotated[Path, typer.Argument(help="its reference or a folder of them")],
    *,
    labels: Annotated[Path | None, typer.Option(help="names and values: a dataset.json, JSON or YAML")] = None,
    output: Annotated[Path | None, typer.Option(help="report.json; a .csv is written next to it")] = None,
    as_json: Json = False,
) -> int:
    """Compare label images with references: overlap and volumes per case and label."""
    from volseg.api.evaluation import evaluate as compare

    document = compare(predictions, references, labels, output)
    if as_json:
        show_json(document)
        return 0
    mean, deviation = document["mean"], document["spread"]["labels"]
    keys = ("iou", "precision", "recall", "volume_difference_ml")
    rows = [
        (name, row["cases"], row["dice"], deviation[name]["dice"], *(row[key] for key in keys))
        for name, row in mean["labels"].items()
    ]
    columns = ("label", "cases", "Dice", "sd", "IoU", "precision", "recall", "difference mL")
    show_table(f"Means over {counted(len(document['cases']), 'case')}", columns, rows)
    show_line(f"mean foreground Dice: {figure(mean['foreground_dice'])}")
    return 0
