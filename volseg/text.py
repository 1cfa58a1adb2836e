"""Text of messages."""

from collections.abc import Sequence


def first_few(items: Sequence[object], shown: int = 5) -> str:
    """The first items of a list for a message, comma-separated, and how many more there are: "a, b and 3 more"."""
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(map(str, items[:shown])) + more
