"""Text of messages."""

from collections.abc import Mapping, Sequence


def first_few(items: Sequence[object], shown: int = 5, separator: str = ", ") -> str:
    """The first items of a list for a message, and how many more there are: "a, b and 3 more"."""
    listed = separator.join(map(str, items[:shown]))
    if len(items) <= shown:
        return listed
    return f"{listed}{' ' if separator == ', ' else separator}and {len(items) - shown} more"


def by_sentence(cases: Mapping[str, Sequence[str]]) -> list[str]:
    """Sentences about cases, each once, with how many cases it is about and the names of the first few.

    Args:
        cases: name of each case, with its sentences.
    """
    names: dict[str, list[str]] = {}
    for name, sentences in cases.items():
        for sentence in dict.fromkeys(sentences):
            names.setdefault(sentence, []).append(name)
    return [f"{sentence} ({len(found)} of {len(cases)} cases: {first_few(found)})" for sentence, found in names.items()]
