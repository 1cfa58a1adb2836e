"""Values of a DICOM dataset as its bytes state them: nothing is validated away, and nothing is filled in.

pydicom's own conversion warns about every odd value and rounds some; here an odd number becomes NaN, which no check
accepts.
"""

import math
import struct
import warnings
import zlib
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from pydicom.charset import decode_bytes, python_encoding
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag

from volseg.errors import InputError

_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "UV": "Q", "SV": "q"}
_BINARY["US or SS"] = "H"
# What pydicom raises on corrupt files.
_CORRUPT = (
    *(InvalidDicomError, BytesLengthException, EOFError, ValueError, KeyError, TypeError, AttributeError),
    *(NotImplementedError, struct.error, zlib.error, OverflowError, RecursionError),
)


@contextmanager
def parsing(where: str) -> Iterator[None]:
    """Report what pydicom raises while it parses a corrupt header, without its warnings.

    Odd values are judged here, by their bytes; the warnings would reach the console, or be raised as errors. The filter
    stays, because a filter that is taken back would change those of other threads.
    """
    warnings.filterwarnings("ignore", module=r"pydicom\.")
    try:
        yield
    except InputError:
        raise
    except (*_CORRUPT, OSError) as error:
        # An error of the operating system has a number; pydicom's own has none.
        if getattr(error, "errno", None) is not None:
            raise
        raise InputError(f"{where}: its header is cut short or corrupt; copy it again.") from error


@cache
def tag_of(name: str) -> BaseTag:
    """The tag of an attribute by its keyword, such as "PixelSpacing"."""
    tag = tag_for_keyword(name)
    assert tag is not None, name
    return BaseTag(tag)


def element(data: Dataset, name: str | int) -> Any:
    """The element by its keyword or tag, not converted; None if it is absent."""
    return data.get_item(tag_of(name) if isinstance(name, str) else BaseTag(name))


def private_blocks(data: Dataset) -> dict[tuple[int, str], list[int]]:
    """The blocks of private elements by group and creator (DICOM PS3.5 7.8.1)."""
    found: dict[tuple[int, str], list[int]] = {}
    for tag in data.keys():  # noqa: SIM118 - a dataset iterates over converted elements
        if tag.group % 2 and 0x10 <= tag.element <= 0xFF:
            found.setdefault((tag.group, text(data, tag)), []).append(tag.element)
    return found


def private_element(data: Dataset, tag: int, kind: str, blocks: list[int]) -> Any:
    """A private element in one of the blocks of its creator, not converted; None if it is absent.

    `tag` counts from the start of its block; `kind` is its value representation where the file has none.
    """
    there = [element(data, tag & 0xFFFF00FF | block << 8) for block in blocks]
    found = next((one for one in there if one is not None), None)
    if isinstance(found, RawDataElement) and found.VR in (None, "UN"):
        return found._replace(VR=kind)
    return found


def texts(data: Dataset, name: str | int) -> list[str]:
    """The values of a text, UID or number written as text; none if it is absent or empty."""
    return texts_of(element(data, name))


def texts_of(found: Any) -> list[str]:
    """The values of an element as text; none if it is absent (None) or empty."""
    value = found.value if found is not None else None
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    # pydicom has converted what it needed itself.
    parts = value.split("\\") if isinstance(value, str) else value if isinstance(value, list | MultiValue) else [value]
    cleaned = ["" if part is None else str(part).strip(" \0\t\r\n") for part in parts]
    return cleaned if any(cleaned) else []


def text(data: Dataset, name: str | int) -> str:
    """The first value of a text, empty if it is absent."""
    return next(iter(texts(data, name)), "")


def described(data: Dataset, name: str) -> str:
    """The first value of a text in its character set, in one line without control characters."""
    found = element(data, name)
    value = found.value if found is not None else None
    if isinstance(value, bytes):
        value = _decoded(value, [python_encoding.get(one, "latin-1") for one in texts(data, "SpecificCharacterSet")])
    return printable(str(value or "").split("\\")[0])


def _decoded(value: bytes, encodings: list[str]) -> str:
    """A text in the first encoding, or in that which its escape sequences name."""
    if b"\x1b" in value and len(encodings) > 1:
        return str(decode_bytes(value, encodings, {0x5C}))
    return value.decode(next(iter(encodings), "latin-1"), "replace")


def printable(value: str) -> str:
    """A text of a file in one line, without control characters."""
    return " ".join("".join(one if one.isprintable() else " " for one in value).split())


def numbers(data: Dataset, name: str | int) -> list[float]:
    """The values of a number; none if it is absent or empty, NaN for what is no number."""
    return numbers_of(element(data, name))


def numbers_of(found: Any) -> list[float]:
    """The values of an element as numbers; none if it is absent (None) or empty, NaN for what is no number."""
    if found is None:
        return []
    kind = kind_of_value(found)
    if kind in _BINARY and isinstance(found.value, bytes):
        return _unpacked(found.value, _BINARY[kind], found.is_little_endian)
    return [_number(part) for part in texts_of(found)]


def number(data: Dataset, name: str | int) -> float | None:
    """The value of a number; None if it is absent or empty, NaN if there are several."""
    return only(numbers(data, name))


def only(values: Sequence[float]) -> float | None:
    """The one value that is stated; None if there is none, NaN if there are several."""
    return None if not values else values[0] if len(values) == 1 else math.nan


def shown(value: float) -> str:
    """A number in a message; NaN stands for text that is no number, and for several numbers."""
    return "not one number" if math.isnan(value) else f"{value:g}"


def order_of(value: Hashable) -> tuple[int, float, str]:
    """A key that sorts numbers by value, before texts; what is absent comes first."""
    first = value[0] if isinstance(value, tuple) and value else value
    if first is None:
        return (0, 0.0, "")
    try:
        return (1, float(first), "")  # type: ignore[arg-type]
    except ValueError:
        return (2, 0.0, str(value))


def shown_mark(value: Hashable) -> str:
    """A value in a message."""
    parts = value if isinstance(value, tuple) else (value,)
    shown = (f"{one:g}" if isinstance(one, float) else printable(str(one)) for one in parts)
    return "none" if value is None else "\\".join(shown)


def count(data: Dataset, name: str | int) -> int:
    """A number that counts something; 0 if it is absent or no whole number."""
    found = number(data, name)
    return int(found) if found is not None and found.is_integer() else 0


def items(data: Dataset, name: str | int) -> Sequence[Dataset]:
    """The items of a sequence; none if it is absent or no sequence."""
    tag = tag_of(name) if isinstance(name, str) else BaseTag(name)
    if tag not in data:
        return ()
    value = data[tag].value
    return value if value and not isinstance(value, bytes | str) else ()


def kind_of_value(found: Any) -> str:
    """The value representation of an element: the dictionary's where it is implicit or was lost (UN)."""
    if found.VR not in (None, "UN"):
        return str(found.VR)
    try:
        return str(dictionary_VR(found.tag))
    except KeyError:
        return "UN"


def _unpacked(value: bytes, code: str, little: bool) -> list[float]:
    size = struct.calcsize("<" + code)
    count = len(value) // size
    if count * size != len(value):
        return [math.nan]
    return [float(one) for one in struct.unpack(f"{'<' if little else '>'}{count}{code}", value)]


def _number(value: str) -> float:
    try:
        # Python alone takes an underscore as part of a number.
        return math.nan if "_" in value else float(value)
    except ValueError:
        return math.nan
