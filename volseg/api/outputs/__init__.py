"""Output formats of a result: one module per format, named as in `--to` with - as _.

To add one, add a module with

    SUFFIX       of its file, in place of the suffix of the label image; None for the label image itself
    write        (result, path) -> None: writes the file `path` whole or not at all, see `volseg.files.whole_file`

and, where they apply,

    OPTIONS      the options by name, with a line about each; `write` then takes those asked for as `options`, such as
                 {"labelmap"} for dicom-seg:labelmap
    NEEDS_DICOM  True if the scan must be a DICOM series, which the file refers to
    reason_for_none  (result) -> str: why a result has no such file, as a sentence without the name of the scan, which
                 goes into the record; empty if it has
    INSTEAD      the format that is written where a result has none in this one
    FOLLOWS      a format whose options this one takes where both are written, unless it is given its own
    warnings     (result) -> sentences for the log and the record: what had to be assumed for the file

A module is imported when its format is first used. From Python, `add_format` adds one without a module.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from volseg.data.io.formats import RESULT_SUFFIXES, image_suffix
from volseg.dicom.quiet import in_silence
from volseg.errors import UsageError

_added: dict[str, "OutputFormat"] = {}


@dataclass(frozen=True)
class OutputFormat:
    """A format with its options.

    Args:
        name: without options.
        options: those asked for, sorted.
        suffix: of its file; None for the label image itself.
        write: the function that writes a result to a path.
        needs_dicom: whether the scan must be a DICOM series.
        reason_for_none: why a result has no file in this format, as a sentence; empty if it has.
        instead: the format that is written where there is a reason for none; empty for no other.
        warnings: what had to be assumed about a result for its file, one sentence each.
    """

    name: str
    options: tuple[str, ...]
    suffix: str | None
    write: Callable[[Any, Path], None]
    needs_dicom: bool = False
    reason_for_none: Callable[[Any], str] = lambda _: ""
    instead: str = ""
    warnings: Callable[[Any], Sequence[str]] = lambda _: ()
    follows: str = ""

    @property
    def asked(self) -> str:
        """Its name with its options, as it is asked for."""
        return ":".join((self.name, *self.options))


def format_names() -> list[str]:
    """All formats, for `--to`."""
    return sorted({module.name.replace("_", "-") for module in iter_modules(__path__)} | _added.keys())


def find_format(text: str) -> OutputFormat:
    """Find a format by its name, with options after colons: dicom-seg:labelmap.

    Raises:
        UsageError: no format has this name, or it has no such option.
    """
    name, *options = (part.strip() for part in text.split(":"))
    if name in _added:
        _check_options(name, options, ())
        return _added[name]
    if name not in format_names():
        raise UsageError(f"There is no output format {name!r}. Use {', '.join(format_names())}.")
    module = import_module(f"{__name__}.{name.replace('-', '_')}")
    known = getattr(module, "OPTIONS", {})
    _check_options(name, options, known)
    needs_dicom = getattr(module, "NEEDS_DICOM", False)
    write = in_silence(module.write) if needs_dicom else module.write
    return OutputFormat(
        name,
        tuple(sorted(set(options))),
        module.SUFFIX,
        partial(write, options=frozenset(options)) if known else write,
        needs_dicom,
        getattr(module, "reason_for_none", lambda _: ""),
        getattr(module, "INSTEAD", ""),
        getattr(module, "warnings", lambda _: ()),
        getattr(module, "FOLLOWS", ""),
    )


def find_formats(to: str | Iterable[str]) -> list[OutputFormat]:
    """Find several formats: their names in a list, or in one text with commas.

    Raises:
        UsageError: as `find_format`; or two write the same file.
    """
    names = to.split(",") if isinstance(to, str) else list(to)
    if not any(name.strip() for name in names):
        raise UsageError(f"No output format is named. Use {', '.join(format_names())}.")
    found = {one.asked: one for one in (find_format(name) for name in names if name.strip())}
    by_file: dict[str | None, str] = {}
    for name, output in found.items():
        if (other := by_file.setdefault(output.suffix, name)) != name:
            raise UsageError(f"{other} and {name} write the same file, {output.suffix}. Ask for one of them.")
    by_name = {one.name: one for one in found.values()}
    return [_following(one, by_name.get(one.follows)) for one in by_name.values()]


def _following(output: OutputFormat, other: OutputFormat | None) -> OutputFormat:
    """A format with the options of the one that it follows, unless it has its own."""
    if other is None or output.options:
        return output
    return find_format(":".join((output.name, *other.options)))


def add_format(name: str, suffix: str, write: Callable[[Any, Path], None]) -> None:
    """Add a format, or replace the one of that name, for this process.

    Args:
        name: for `to`.
        suffix: of its file, for example ".csv": `scan.nii.gz` gives `scan.csv`.
        write: called with a `volseg.Result` and the path to write.
    """
    _added[name] = OutputFormat(name, (), suffix, write)
    # A further image must not be taken for a scan; one in another format has the name of a label image.
    if image_suffix(Path(suffix)) or suffix.lower().endswith(".dcm"):
        RESULT_SUFFIXES.add(suffix.lower())


def _check_options(name: str, found: Iterable[str], known: Iterable[str]) -> None:
    """Reject options that a format does not have."""
    unknown = [option for option in found if option not in known]
    if unknown:
        has = f"has {', '.join(known)}" if known else "has none"
        raise UsageError(f"The output format {name} has no option {unknown[0]!r}; it {has}.")
