"""volseg convert."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from volseg.cli.app import Json, Overwrite, app
from volseg.cli.console import guarded, show_json, show_line, show_table
from volseg.text import printable

logger = logging.getLogger(__name__)


@app.command()
@guarded
def convert(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="a scan, a DICOM series, or a DICOM SEG or RTSTRUCT")],
    *,
    output: Annotated[Path, typer.Option(help="the image file: .nii.gz, .nii, .mgz, .mgh, .nrrd or .mha")],
    like: Annotated[
        Path | None, typer.Option(metavar="SCAN", help="the scan whose grid the labels of SEG or RTSTRUCT get")
    ] = None,
    series: Annotated[
        str | None, typer.Option(metavar="UID|NUMBER", help="which DICOM series, where there are several")
    ] = None,
    volume: Annotated[int | None, typer.Option(metavar="N", help="which volume of a 4-D scan, from 1")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> int:
    """Write a scan, or the labels of a DICOM SEG or RTSTRUCT, as an image file with a JSON record."""
    from volseg.api.convert import convert as start

    record = start(source, output, like, series=series, volume=volume, overwrite=overwrite)
    for line in record["warnings"]:
        logger.warning("%s", line)
    if as_json:
        show_json(record)
    elif "segments" in record:
        rows = [
            (name, ", ".join(map(str, value if isinstance(value, list) else [value])), one["voxels"], one["volume_ml"])
            for name, value in record["labels"].items()
            for one in (record["segments"][name],)
        ]
        show_table(f"Labels in {output}", ("label", "values", "voxels", "mL"), rows)
    else:
        show_line(f"Wrote {printable(output)}")
    return 0
