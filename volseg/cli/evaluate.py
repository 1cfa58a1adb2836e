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
    surface: Annotated[
        str, typer.Option(help="surface-distance, monai or metrics-reloaded: whose definition of distances")
    ] = "surface-distance",
    tolerance_mm: Annotated[float, typer.Option(help="of the normalised surface Dice")] = 1.0,
    as_json: Json = False,
) -> int:
    """Compare label images with references: overlap, distances and volumes per case and label."""
    from volseg.api.evaluation import evaluate as compare

    document = compare(predictions, references, labels, output, surface=surface, tolerance_mm=tolerance_mm)
    if as_json:
        show_json(document)
        return 0
    mean, deviation = document["mean"], document["spread"]["labels"]
    keys = ("precision", "recall", "hausdorff95_mm", "assd_mm", "surface_dice", "volume_difference_ml")
    rows = [
        (name, row["cases"], row["missed"], row["dice"], deviation[name]["dice"], *(row[key] for key in keys))
        for name, row in mean["labels"].items()
    ]
    nsd = f"NSD {tolerance_mm:g} mm"
    columns = (
        "label",
        "cases",
        "missed",
        "Dice",
        "sd",
        "precision",
        "recall",
        "HD95 mm",
        "ASSD mm",
        nsd,
        "difference mL",
    )
    show_table(f"Means over {counted(len(document['cases']), 'case')}", columns, rows)
    show_line(f"mean foreground Dice: {figure(mean['foreground_dice'])}")
    return 0
