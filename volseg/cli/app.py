"""The command line application: its options that several verbs share, and how it starts.

A verb parses, calls `volseg.api` and prints. It imports the heavy parts when it runs, so that --help answers fast.
"""

import atexit
import gc
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from volseg.cli.console import show_json, show_line, show_table
from volseg.version import __version__

# New objects between two garbage collections; Python starts with 700.
GARBAGE_THRESHOLD = 50_000
app = typer.Typer(
    name="volseg",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage or bad input, 3 some of several cases failed. "
    "--debug (anywhere) shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document on standard output")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="overwrite existing output")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="key=value, overrides the configuration")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="a YAML configuration; see configs/")]


@app.callback(invoke_without_command=True)
def version(
    version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False,
) -> None:
    """Segment medical volumes (MRI, CT). For research; not a medical device."""
    if version:
        show_line(f"volseg {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; --debug may be given anywhere."""
    if "--debug" in sys.argv:
        sys.argv = [argument for argument in sys.argv if argument != "--debug"]
        logging.getLogger("volseg").setLevel(logging.DEBUG)
    # Loading torch makes a million objects that stay; collecting garbage among them, time and again and once more at
    # exit, takes as long as a scan.
    gc.set_threshold(GARBAGE_THRESHOLD)
    atexit.register(gc.freeze)
    app()


def figure(value: float | None, digits: int = 4) -> str:
    """A score for people; None is said in words."""
    return "none (no label was found in any case)" if value is None else f"{value:.{digits}f}"


def show_description(description: dict[str, Any], as_json: bool) -> None:
    """Print what `volseg.api.describe` returns, as a table or as JSON."""
    if as_json:
        show_json(description)
    else:
        show_table(description["what"], ("", ""), [(key, value) for key, value in description.items() if key != "what"])
