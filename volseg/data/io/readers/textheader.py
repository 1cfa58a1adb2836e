"""Headers of text, as NRRD and MetaImage have them: numbers, units and names of files, each as stated or refused."""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from volseg.data.io.formats import begins_as_dicom
from volseg.errors import InputError

GZIP_MAGIC = b"\x1f\x8b"
# Larger lengths and factors are no measurements; float32 and the squares of lengths overflow beyond.
LARGEST = 1e30

# Longer lines and headers are no header; a binary file without line ends would be read whole otherwise.
_LONGEST_LINE = 1 << 20
_LONGEST_HEADER = 1 << 26
_NUMBER = re.compile(r"[-+]?((\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?|nan|inf(inity)?)", re.IGNORECASE | re.ASCII)
_INTEGER = re.compile(r"[-+]?\d{1,18}", re.ASCII)
_PLACE = re.compile(r"%0?\d{0,2}d", re.ASCII)
_LONGEST_LIST = 1000
_NUMBERED = re.compile(rf"(.*?{_PLACE.pattern}.*?)((?:\s+[-+]?\d{{1,9}}){{0,4}})\s*", re.ASCII)
_MILLIMETRES = {
    "nm": 1e-6, "nanometer": 1e-6, "nanometers": 1e-6, "nanometre": 1e-6, "nanometres": 1e-6,
    "um": 1e-3, "µm": 1e-3, "μm": 1e-3, "micron": 1e-3, "microns": 1e-3,
    "micrometer": 1e-3, "micrometers": 1e-3, "micrometre": 1e-3, "micrometres": 1e-3,
    "mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "millimetre": 1.0, "millimetres": 1.0,
    "cm": 10.0, "centimeter": 10.0, "centimeters": 10.0, "centimetre": 10.0, "centimetres": 10.0,
    "m": 1e3, "meter": 1e3, "meters": 1e3, "metre": 1e3, "metres": 1e3,
}  # fmt: skip


def header_lines(stream: IO[bytes], source: str) -> Iterator[str]:
    """The lines of a header as they stand, with their line ends; bytes that are not UTF-8 are kept for names of files.

    Raises:
        InputError: a line or the header is so long that it is none.
    """
    begin = stream.tell()
    while line := stream.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE or stream.tell() - begin > _LONGEST_HEADER:
            raise InputError(f"{source}: the header does not end; fix it.")
        yield line.decode("utf-8", "surrogateescape")


def not_of_this_kind(start: bytes, kind: str, source: str) -> InputError:
    """The error for a file that is of another kind than its suffix says, from its first bytes."""
    if not start:
        return InputError(f"{source} is an empty file; copy it again.")
    first = start[:16].split(b"\n")[0].strip()
    begins = f"with '{first.decode()}'" if first.isascii() and first.decode("latin-1").isprintable() else ""
    begins = "as DICOM" if begins_as_dicom(start) else "as gzip" if start.startswith(GZIP_MAGIC) else begins
    begins = begins or f"with the bytes {start[:4].hex(' ')}"
    return InputError(f"{source} is not {kind} (it begins {begins}); correct its suffix.")


def shown(text: str, most: int = 60) -> str:
    """A text from a file for a message: in one line, printable, and not long."""
    clean = "".join(letter if letter.isprintable() else "?" for letter in text)
    return clean if len(clean) <= most else f"{clean[: most - 3]}..."


def numbers(value: str, field: str, source: str, count: int | None = None) -> list[float]:
    """The numbers of a field, separated by blanks; NaN and infinity are numbers here.

    Raises:
        InputError: something else stands there, or not `count` of them.
    """
    words = value.split()
    if not all(map(_NUMBER.fullmatch, words)) or len(words) != (count or len(words)) or not words:
        expected = "numbers" if count is None else "1 number" if count == 1 else f"{count} numbers"
        raise wrong(field, value, expected, source)
    return [float(word) for word in words]


def integers(value: str, field: str, source: str, count: int | None = None) -> list[int]:
    """The whole numbers of a field, separated by blanks.

    Raises:
        InputError: something else stands there, or not `count` of them.
    """
    words = value.split()
    if not all(map(_INTEGER.fullmatch, words)) or len(words) != (count or len(words)) or not words:
        expected = "whole numbers" if count is None else "1 whole number" if count == 1 else f"{count} whole numbers"
        raise wrong(field, value, expected, source)
    return [int(word) for word in words]


def wrong(field: str, value: str, expected: str, source: str) -> InputError:
    """The error for a field whose value cannot be meant."""
    return InputError(f"{source}: '{field}' is '{shown(value)}', expected {expected}; fix the header.")


def absent(field: str, source: str, remedy: str = "add it to the header") -> InputError:
    """The error for a field that has to be stated."""
    return InputError(f"{source}: '{field}' is not stated in the header; {remedy}.")


def positive_sizes(sizes: list[int], field: str, source: str) -> tuple[int, ...]:
    """Sizes of at least 1.

    Raises:
        InputError: one is smaller.
    """
    if min(sizes) < 1:
        raise wrong(field, " ".join(map(str, sizes)), "sizes of at least 1", source)
    return tuple(sizes)


def millimetres(unit: str, field: str, source: str) -> float:
    """The length of a unit in mm.

    Raises:
        InputError: it is no unit of length that is known here.
    """
    if (factor := _MILLIMETRES.get(unit.strip().lower())) is None:
        raise InputError(
            f"{source}: '{field}' is '{shown(unit)}', expected a unit of length such as mm; fix the header."
        )
    return factor


def numbered_files(value: str) -> tuple[str, list[str]] | None:
    """The name with a place for a number and the numbers after it, as in "s%03d.raw 0 34 1"; None without a place."""
    # Of a long text the match takes time by the square of its length.
    match = _NUMBERED.fullmatch(value) if len(value) <= _LONGEST_LIST else None
    return (match[1], match[2].split()) if match else None


def every_number(first: int, last: int, step: int, value: str, field: str, source: str) -> range:
    """The numbers from first to last, both included.

    Raises:
        InputError: the step is 0.
    """
    if step == 0:
        raise wrong(field, value, "a step other than 0", source)
    return range(first, last + (1 if step > 0 else -1), step)


def with_number(name: str, number: int) -> str:
    """The name of one file; only the number is put in, so that another "%" in the name does no harm."""
    return _PLACE.sub(lambda match: match[0] % number, name, count=1)


def require_files(found: int, sizes: tuple[int, ...], axes: int | None, field: str, source: str) -> None:
    """Reject a list of fewer or more files than the sizes need.

    Args:
        found: their number.
        sizes: of all voxels.
        axes: how many axes each file has; None: all but the last. With all of them, each has a part of the last.
        field: where they are listed, for messages.
        source: the header, for messages.
    """
    axes = len(sizes) - 1 if axes is None else axes
    if not 1 <= axes <= len(sizes):
        raise InputError(f"{source}: '{field}' has files of {axes} axes, expected 1 to {len(sizes)}; fix the header.")
    needed = math.prod(sizes[axes:])
    if found == needed or (axes == len(sizes) and found and sizes[-1] % found == 0):
        return
    which = f"{needed - found} are missing" if found < needed else f"{found - needed} are too many"
    raise InputError(
        f"{source}: '{field}' names {found} files of voxels, but the sizes need {needed} ({which}); fix the header."
    )


def file_in(folder: Path, name: str) -> Path:
    """A file as a header names it, with the bytes of a name that is not UTF-8.

    Programs on Windows separate folders by backslashes, which elsewhere are letters of a name: they count as
    separators if the file is there under that name only.
    """
    literal = folder / os.fsdecode(name.encode("utf-8", "surrogateescape"))
    if "\\" not in name or os.path.lexists(literal):
        return literal
    other = folder / os.fsdecode(name.replace("\\", "/").encode("utf-8", "surrogateescape"))
    return other if os.path.exists(other) else literal
