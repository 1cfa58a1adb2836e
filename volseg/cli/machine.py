"""volseg doctor and demo: does it work here?"""

from pathlib import Path
from typing import Annotated

import typer

from volseg.cli.app import Json, Overwrite, app, figure
from volseg.cli.console import guarded, progress_bar, show_json, show_line, show_table
from volseg.text import printable


@app.command()
@guarded
def doctor(*, as_json: Json = False) -> int:
    """Check the installation: device, memory, versions, known-bad combinations."""
    from volseg.api.doctor import examine

    findings = examine()
    if as_json:
        show_json([finding._asdict() for finding in findings])
    else:
        show_table("This machine", ("what", "found", "verdict"), findings)
    return 0 if all(finding.verdict == "ok" for finding in findings) else 1


@app.command()
@guarded
def demo(
    *,
    output: Annotated[Path, typer.Option(help="folder for all files of the demo")] = Path("volseg_demo"),
    samples: Annotated[Path | None, typer.Option(help="phantoms to use (default: generate them)")] = None,
    overwrite: Overwrite = False,
) -> int:
    """Train on phantoms for about a minute, segment unseen phantoms and score the result."""
    from volseg.api.demo import run_demo

    with progress_bar() as progress:
        outcome = run_demo(output, samples, overwrite, progress)
    show_table("Volumes of the segmented scans", ("case", "label", "mL", "reference mL", "Dice"), outcome.rows)
    show_line(f"preview: {printable(outcome.preview)}")
    show_line(f"best threshold baseline Dice: {figure(outcome.threshold_dice)}")
    show_line(f"mean foreground Dice: {figure(outcome.dice, 2)}")
    return 0
