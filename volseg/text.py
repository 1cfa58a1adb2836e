"""Text of messages."""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

# What begins a line of a list in a message.
LISTED = "\n  "


def first_few(items: Sequence[object], shown: int = 5, separator: str = ", ") -> str:
    """The first items of a list for a message, and how many more there are: "a, b and 3 more"."""
    listed = separator.join(map(str, items[:shown]))
    if len(items) <= shown:
        return listed
    return f"{listed}{' ' if separator == ', ' else separator}and {len(items) - shown} more"


def shortened(text: str, longest: int) -> str:
    """A text of at most `longest` characters: of a longer one the start and the end, where messages say what to do."""
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end - 5]} ... {text[-end:]}"


def whole_number(text: object) -> int | None:
    """The number that a text of 1 to 18 digits 0 to 9 says; None for any other text.

    Python's own `int` raises for more than 4300 digits and reads those of other scripts.
    """
    return int(str(text)) if re.fullmatch("[0-9]{1,18}", str(text)) else None


def counted(count: int, noun: str) -> str:
    """A number and its noun, in the plural unless it is 1: "1 case", "3 cases"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def shows_names() -> bool:
    """Whether messages name files within a DICOM series: with --debug alone, as they often hold a patient's name."""
    return logging.getLogger("volseg").isEnabledFor(logging.DEBUG)


def by_sentence(cases: Mapping[str, Sequence[str]]) -> list[str]:
    """Sentences about cases, each once, with how many cases it is about and the names of the first few.

    Args:
        cases: name of each case, with its sentences.
    """
    names: dict[str, list[str]] = {}
    for name, sentences in cases.items():
        for sentence in dict.fromkeys(sentences):
            names.setdefault(sentence, []).append(name)
    return [
        f"{sentence} ({len(found)} of {counted(len(cases), 'case')}: {first_few(found)})"
        for sentence, found in names.items()
    ]


def printable(text: object) -> str:
    """Text for a line of a message: characters that are not printed, but change what is, as their code.

    Control characters, line breaks and marks of the direction of writing may be in names of files; so may bytes that
    are not UTF-8, which Python keeps as U+DC80 to U+DCFF.
    """
    return "".join(one if one.isprintable() else _code(ord(one)) for one in str(text))


def printable_lines(message: object) -> str:
    """A message as `printable` text that keeps its list: lines of their own, which begin with two blanks."""
    return LISTED.join(map(printable, str(message).split(LISTED)))


def _code(number: int) -> str:
    """A character as in a Python string; a byte of a file name that is not UTF-8 as that byte."""
    if 0xDC80 <= number <= 0xDCFF:
        return f"\\x{number - 0xDC00:02x}"
    short = {10: "\\n", 13: "\\r", 9: "\\t"}.get(number)
    return short or (
        f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"
    )


class OneLine(logging.Formatter):
    """A log line with `printable` messages; lists and tracebacks keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name in logging
        """The line without a traceback."""
        record.message = printable_lines(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name in logging
        """A traceback, whose last lines are a message."""
        return "\n".join(map(printable, super().formatException(ei).split("\n")))
