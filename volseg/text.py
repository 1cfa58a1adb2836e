"""Text of messages."""

from collections.abc import Sequence


def first_few(items: Sequence[object], shown: int = 5, separator: str = ", ") -> str:
    """The first items of a list for a message, and how many more there are: "a, b and 3 more"."""
    listed = separator.join(map(str, items[:shown]))
    if len(items) <= shown:
        return listed
    return f"{listed}{' ' if separator == ', ' else separator}and {len(items) - shown} more"
