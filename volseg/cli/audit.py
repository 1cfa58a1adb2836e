"""volseg audit."""

from pathlib import Path
from typing import Annotated, Any

import typer

from volseg.cli.app import Device, Json, app
from volseg.cli.console import guarded, progress_bar, show_json, show_line, show_table
from volseg.text import counted, printable

# Rows of the table.
SHOWN = 20


@app.command()
@guarded
def audit(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="finished runs of one dataset, such as folds")],
    *,
    output: Annotated[Path | None, typer.Option(help="a folder for audit.json, .csv, .html and pictures")] = None,
    dataset: Annotated[
        list[Path] | None, typer.Option(help="the dataset of the runs, if it was moved; may be repeated")
    ] = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16")] = "auto",
    as_json: Json = False,
) -> int:
    """Find the cases whose labels are probably wrong, the most suspicious first."""
    from volseg.api.audit.audit import audit as find

    with progress_bar() as progress:
        document = find(
            runs, output, dataset=dataset or None, device=device, precision=precision, progress=progress
        )  # fmt: skip
    if as_json:
        show_json(document)
    else:
        _show(document, output)
    return 3 if document["failed"] else 0


def _show(document: dict[str, Any], output: Path | None) -> None:
    """Print the most suspicious cases, and where the rest is."""
    from volseg.report.audit_page import USUAL

    rows = [
        (case["rank"], case["name"], case["score"], case["label"] or "all labels", case["measure"],
         *_first(case["findings"]))
        for case in document["cases"][:SHOWN]
    ]  # fmt: skip
    columns = ("rank", "case", "score", "label", "measure", "reference", "model", "mL", "at voxel")
    show_table(f"Most suspicious of {counted(len(document['cases']), 'case')}", columns, rows)
    above = sum(case["score"] > USUAL for case in document["cases"])
    show_line(f"scores above {USUAL}: {above} of {len(document['cases'])}; in a dataset without errors few are")
    if output is not None:
        show_line(f"pictures: {printable(str(output / 'audit.html'))}")


def _first(findings: list[dict[str, Any]]) -> tuple[Any, ...]:
    """The columns of the first finding."""
    if not findings:
        return None, None, None, None
    first = findings[0]
    return first["reference"], first["prediction"], first["volume_ml"], ", ".join(map(str, first["voxel"]))
