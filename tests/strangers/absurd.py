"""Documents with one absurd field, by seed."""

import copy
import json
import random
from typing import Any

NAMES = "\x1b]0;title\x07\x1b[2J\r../../../etc\u202e<script>\x9b1m"


def _nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def _integer(text: str) -> Any:
    """An integer as `as_text` writes it; Python would refuse to convert such long ones."""
    return {"__integer__": text}


# What a field becomes.
VALUES = [
    None, True, "x", "", NAMES, "x" * 1_000_000, 0, -1, -(10**9), 2, 10**5, 10**9, 10**18, 2**63, 2**64, -(2**63),
    0.0, -0.5, 1e-300, 5e-324, 1e308, -1e308, float("nan"), float("inf"), float("-inf"), _integer("9" * 5000),
    _integer("1" + "0" * 400), [], {}, [[]], [{}], {"": {}}, _nested(20), _nested(900), _nested(20_000), [1] * 100_000,
    [0, 0, 0], [-1, -1, -1], [1e-300] * 3, [10**6] * 3, [10**9] * 3, [1024] * 3, ["x"] * 3, [None] * 3,
    {str(key): key for key in range(1000)}, [2, 1], [NAMES] * 2, "\ud800", "\0", "2001-99-99",
]  # fmt: skip


def places(document: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values in a document."""
    if isinstance(document, dict):
        inner = document.items()
    else:
        inner = enumerate(document) if isinstance(document, list) else ()
    return [place, *(one for key, value in inner for one in places(value, (*place, key)))]


def absurd(document: Any, seed: int) -> tuple[str, Any]:
    """What was changed, and a copy of a document with a random value changed, doubled, removed or added."""
    draw, changed = random.Random(seed), copy.deepcopy(document)
    place = draw.choice(places(document)[1:])
    holder = changed
    for key in place[:-1]:
        holder = holder[key]
    key = place[-1]
    kind = draw.choice(["value"] * 7 + ["gone", "extra", "twice"])
    if kind == "value":
        holder[key] = draw.choice(VALUES)
    elif kind == "gone":
        del holder[key]
    elif kind == "extra" and isinstance(holder, dict):
        holder[draw.choice(["", "x", NAMES, "y" * 100_000])] = draw.choice(VALUES)
    elif isinstance(holder, list):
        holder.extend(copy.deepcopy(holder))
    else:
        holder[f"{key}\u200b"] = copy.deepcopy(holder[key])
    return f"{kind} at {'.'.join(map(str, place))}", changed


def as_text(value: Any) -> str:
    """A document as JSON, which is YAML as well, however deep it is."""
    parts: list[str] = []
    waiting: list[Any] = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, _Text):
            parts.append(one)
        elif isinstance(one, dict) and list(one) == ["__integer__"]:
            parts.append(one["__integer__"])
        elif isinstance(one, dict):
            pairs = [
                [_Text("," if i else ""), _Text(json.dumps(k)), _Text(":"), v] for i, (k, v) in enumerate(one.items())
            ]
            waiting += [_Text("}"), *(part for pair in reversed(pairs) for part in reversed(pair)), _Text("{")]
        elif isinstance(one, list):
            pairs = [[_Text("," if i else ""), v] for i, v in enumerate(one)]
            waiting += [_Text("]"), *(part for pair in reversed(pairs) for part in reversed(pair)), _Text("[")]
        else:
            parts.append(json.dumps(one))
    return "".join(parts)


class _Text(str):
    """A part of a text that is written as it is."""
