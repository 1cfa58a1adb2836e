"""JSON and YAML of any origin, read with bounds: size, nesting, number of values, long integers, repeated keys.

A document that says too much is refused before it takes memory or time. Every reader of volseg comes here, so that a
configuration, a dataset, a model file and a run folder are held to the same rules.
"""

import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

# Bytes of a JSON document. A dataset.json of 10,000 cases has about 1 MB.
LARGEST_JSON = 16 * 2**20
# Bytes of a YAML document, whose parser is 100 times as slow. A plan of 1,000 labels has about 200 kB.
LARGEST_YAML = 2**19
# Values in a JSON document: each takes up to 200 bytes of memory.
MOST_VALUES = 500_000
# Values in a YAML document, those that aliases repeat included.
MOST_NODES = 20_000
DEEPEST = 32
# Digits of an integer: 64 bits and more; float() of longer ones may overflow.
MOST_DIGITS = 20
# What PyYAML raises for values that are not what their tag or their form says, such as the date 2001-99-99.
_NOT_A_VALUE = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)


class DocumentError(ValueError):
    """Not a document, or one beyond the bounds; the message is the reason, as the end of a sentence without its dot."""


class BrokenDocumentError(DocumentError):
    """Not JSON at all: cut short, or changed by something else."""


def read_text(path: Path, largest: int = LARGEST_JSON) -> str:
    """The text of a UTF-8 file.

    Raises:
        OSError: not readable.
        DocumentError: larger than `largest` bytes, not UTF-8, or neither a file nor in /dev.
    """
    # A pipe without a writer would block; one that the user names is in /dev, as that of a shell's <(...).
    kind = os.stat(path).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind) or Path(path).parts[:2] == (os.sep, "dev")):
        raise DocumentError("it is a pipe or a device, not a file")
    with open(path, "rb") as file:
        # One byte more tells a file that is too large, also where the size is unknown before, as that of a pipe.
        content = file.read(largest + 1)
    if len(content) > largest:
        raise DocumentError(f"it is larger than {largest / 2**20:g} MiB")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DocumentError(f"byte {error.start} is not UTF-8") from error


def read_json(path: Path, nan: bool = False, times: int = 1) -> Any:
    """The JSON document in a file; see `parse_json`.

    Raises:
        OSError: not readable.
        DocumentError: see `parse_json`.
    """
    return parse_json(read_text(path, times * LARGEST_JSON), nan, times)


def parse_json(text: str, nan: bool = False, times: int = 1) -> Any:
    """A JSON document.

    Args:
        text: the document.
        nan: accept NaN and infinite numbers, which JSON does not have but other programs write.
        times: accept so many times the usual size.

    Raises:
        DocumentError: not JSON, a key twice in one object, or beyond the bounds.
    """
    if sum(map(text.count, ",[{")) > times * MOST_VALUES:
        raise DocumentError(f"it has more than {times * MOST_VALUES:,} values")
    try:
        document = json.loads(
            text.removeprefix("\ufeff"),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=float if nan else _finite,
            parse_constant=float if nan else _finite,
        )
    except RecursionError as error:
        raise DocumentError(f"it is nested more than {DEEPEST} levels deep") from error
    except json.JSONDecodeError as error:
        raise BrokenDocumentError(f"{error.msg} at line {error.lineno}, column {error.colno}") from error
    _check_depth(document)
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, of which Python would silently keep the last of equal keys."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DocumentError(f"the key {twice[:60]!r} is there twice")
    return found


def _integer(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise DocumentError(f"it has an integer of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise DocumentError(f"it has the number {text[:MOST_DIGITS]}, which is not finite")
    return value


def _check_depth(document: Any) -> None:
    """Refuse deep nesting, level by level: what follows, such as `repr`, calls itself once per level."""
    level = [document]
    for _ in range(DEEPEST):
        level = [
            item
            for value in level
            if isinstance(value, dict | list)
            for item in (value.values() if isinstance(value, dict) else value)
        ]
    if level:
        raise DocumentError(f"it is nested more than {DEEPEST} levels deep")


def read_yaml(path: Path) -> Any:
    """The YAML document in a file; see `parse_yaml`.

    Raises:
        OSError: not readable.
        DocumentError: see `parse_yaml`.
    """
    return parse_yaml(read_text(path, LARGEST_YAML))


def parse_yaml(text: str) -> Any:
    """A YAML document of plain values; None if it is empty.

    Raises:
        DocumentError: not YAML, a key twice in one mapping, or beyond the bounds.
    """
    if len(text) > LARGEST_YAML:
        raise DocumentError(f"it is larger than {LARGEST_YAML / 2**20:g} MiB")
    try:
        return yaml.load(text, _Loader)
    except DocumentError:
        raise
    except yaml.YAMLError as error:
        raise DocumentError(_place_and_problem(error)) from error
    except _NOT_A_VALUE as error:
        # Of the others the message is about Python, such as an index out of range.
        reason = f" ({error})" if type(error) is ValueError else ""
        raise DocumentError(f"a value is not of the type that its form or its tag says{reason}") from error


def _place_and_problem(error: yaml.YAMLError) -> str:
    """What PyYAML found, with line and column, without its name for the text and its drawing of the line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split()).rstrip(".")
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


class _Loader(yaml.SafeLoader):
    """Refuses repeated keys, deep nesting, long integers, and aliases that multiply or contain themselves."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.depth = self.nodes = 0
        # By the identity of each finished node: the values and the levels in it, those of its aliases included.
        self.sizes: dict[int, tuple[int, int]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        alias = self.check_event(yaml.AliasEvent)
        self.depth += 1
        self.nodes += 1
        if self.depth > DEEPEST:
            raise DocumentError(f"it is nested more than {DEEPEST} levels deep")
        if self.nodes > MOST_NODES:
            raise DocumentError(f"it has more than {MOST_NODES:,} values")
        node: Any = super().compose_node(parent, index)
        self.depth -= 1
        if not alias:
            self._measure(node)
        elif id(node) not in self.sizes:
            raise DocumentError(f"an alias on line {node.start_mark.line + 1} contains itself")
        return node

    def _measure(self, node: yaml.Node) -> None:
        inner = [self.sizes[id(one)] for one in _children(node)]
        size, height = 1 + sum(size for size, _ in inner), 1 + max((height for _, height in inner), default=0)
        if size > MOST_NODES:
            raise DocumentError(f"its aliases repeat more than {MOST_NODES:,} values")
        if height > DEEPEST:
            raise DocumentError(f"it is nested more than {DEEPEST} levels deep")
        self.sizes[id(node)] = size, height

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise DocumentError(f"the key on line {key.start_mark.line + 1} is not a name")
            line = key.start_mark.line + 1
            if key.value in lines:
                raise DocumentError(
                    f"the key '{key.value[:60]}' is on line {lines[key.value]} and again on line {line}"
                )
            lines[key.value] = line
        return node

    def construct_integer(self, node: Any) -> int:
        if len(node.value) > MOST_DIGITS:
            raise DocumentError(f"it has an integer of {len(node.value)} digits")
        return int(self.construct_yaml_int(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [one for pair in node.value for one in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def read_or(
    error_type: Callable[[str], Exception], read: Callable[[Path], Any], path: Path, what: str, advice: str
) -> Any:
    """A document; what is wrong with it as an error of one sentence.

    Args:
        error_type: makes the error from its message.
        read: `read_json` or `read_yaml`.
        path: the file.
        what: it should be, such as "valid YAML".
        advice: what to do where it cannot be read, as a sentence.

    Raises:
        Exception: of `error_type`.
    """
    try:
        return read(path)
    except OSError as error:
        raise error_type(f"Could not read {path}: {error.strerror or error}. {advice}") from error
    except DocumentError as error:
        raise error_type(f"{path} is not {what}: {error}.") from error
