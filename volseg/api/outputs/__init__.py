"""Output formats of a result: one module per format, named as in `--to` with - as _.

To add one, add a module with

    SUFFIX       of its file, in place of the suffix of the label image; None for the label image itself
    write        (result, path) -> None: writes the file `path` whole or not at all, see `volseg.files.whole_file`

A module is imported when its format is first used. From Python, `add_format` takes the two as arguments.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NamedTuple

from volseg.errors import UsageError

_added: dict[str, "OutputFormat"] = {}


class OutputFormat(NamedTuple):
    """A format: the suffix of its file (None: the label image itself), and the function that writes it."""

    suffix: str | None
    write: Callable[[Any, Path], None]


def format_names() -> list[str]:
    """All formats, for `--to`."""
    return sorted({module.name.replace("_", "-") for module in iter_modules(__path__)} | _added.keys())


def find_format(name: str) -> OutputFormat:
    """Find a format by its name.

    Raises:
        UsageError: no format has this name.
    """
    if name in _added:
        return _added[name]
    if name not in format_names():
        raise UsageError(f"There is no output format {name!r}. Use {', '.join(format_names())}.")
    module = import_module(f"{__name__}.{name.replace('-', '_')}")
    return OutputFormat(module.SUFFIX, module.write)


def add_format(name: str, suffix: str, write: Callable[[Any, Path], None]) -> None:
    """Add a format, or replace the one of that name, for this process.

    Args:
        name: for `to`.
        suffix: of its file, for example ".csv": `scan.nii.gz` gives `scan.csv`.
        write: called with a `volseg.Result` and the path to write.
    """
    _added[name] = OutputFormat(suffix, write)
