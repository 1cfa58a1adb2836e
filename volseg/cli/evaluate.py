"""volseg evaluate."""

from pathlib import Path
from typing import Annotated, Any

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
    if lesions:
        _show_lesions(document, lesions)
    show_line(f"mean foreground Dice: {figure(mean['foreground_dice'])}")
    return 0


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
