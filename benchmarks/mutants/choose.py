"""Which tests are run for a mutant: those that execute its line, by the map of coverage_map.py."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mutants.make import ROOT, Mutant

# The sum of the seconds that the chosen tests took when the map was made.
SECONDS = 30.0
# Tests of the module's own package are more likely to fail than others; their seconds count so much.
NEAR = 0.1


@dataclass(frozen=True)
class Map:
    """Seconds of each test, and the tests that execute each line."""

    seconds: dict[str, float]
    lines: dict[str, dict[int, frozenset[str]]]

    def of_file(self, file: str) -> list[str]:
        """All tests of a test file."""
        return [test for test in self.seconds if test.startswith(f"{file}::")]

    def tests(self, contexts: Iterable[str]) -> set[str]:
        """The tests of contexts; what a shared fixture executes counts for all tests of its file."""
        found: set[str] = set()
        for context in contexts:
            name, _, kind = context.rpartition("|")
            found.update(self.of_file(name) if kind == "shared" else [name])
        return found & self.seconds.keys()


def read_maps(paths: Sequence[Path]) -> Map:
    """The maps of one or more runs of the tests; of tests in several, the last counts. Failing tests are left out."""
    seconds: dict[str, float] = {}
    lines: dict[str, dict[int, set[str]]] = {}
    for path in paths:
        document: dict[str, Any] = json.loads(path.read_text())
        seconds |= {test: took for test, took in document["seconds"].items() if test not in document["failed"]}
        for file, found in document["lines"].items():
            for line, contexts in found.items():
                lines.setdefault(file, {}).setdefault(int(line), set()).update(contexts)
    frozen = {file: {line: frozenset(found) for line, found in one.items()} for file, one in lines.items()}
    return Map(seconds, frozen)


def chosen(mutant: Mutant, known: Map, everything: float = SECONDS) -> list[str]:
    """The tests for a mutant, by file, the fastest first; in the map they took `everything` seconds or less."""
    mirror = f"tests/{Path(mutant.file).relative_to('volseg').parent / ('test_' + Path(mutant.file).name)}"
    candidates = at_import(mutant, known, mirror) if mutant.names else executing(mutant, known)
    by_file: dict[str, list[str]] = {}
    for test in sorted(candidates, key=known.seconds.__getitem__):
        by_file.setdefault(test.partition("::")[0], []).append(test)

    def cost(file: str) -> float:
        seconds = sum(known.seconds[test] for test in by_file[file])
        return seconds * (NEAR if Path(file).parent == Path(mirror).parent else 1.0)

    order, spent = [], 0.0
    for file in sorted(by_file, key=cost):
        for test in by_file[file]:
            if spent + known.seconds[test] <= everything or not order:
                order.append(test)
                spent += known.seconds[test]
    return order


def executing(mutant: Mutant, known: Map) -> set[str]:
    """The tests that execute a line of the mutant; if none does, those of the files that mirror the module."""
    lines = known.lines.get(mutant.file, {})
    last = mutant.line + mutant.old.count("\n")
    found = known.tests(context for line in range(mutant.line, last + 1) for context in lines.get(line, ()))
    # Only processes that tests start execute it.
    name = f"/test_{Path(mutant.file).name}::"
    return found or {test for test in known.seconds if name in test}


def at_import(mutant: Mutant, known: Map, mirror: str) -> set[str]:
    """For a line that runs at import: the tests of its file, those of files that name what it defines, and those that
    execute a line of the package that does.
    """
    found = set(known.of_file(mirror))
    found |= known.tests(context for contexts in known.lines.get(mutant.file, {}).values() for context in contexts)
    for name in mutant.names:
        word = re.compile(rf"\b{re.escape(name)}\b")
        for file, text in texts("tests"):
            if word.search(text):
                found |= set(known.of_file(file))
        for file, text in texts("volseg"):
            lines = known.lines.get(file, {})
            for number, line in enumerate(text.split("\n"), start=1):
                if word.search(line):
                    # The body of a function whose default is changed starts below its name.
                    numbers = range(number, number + 60) if f"def {name}(" in line else [number]
                    found |= known.tests(context for one in numbers for context in lines.get(one, ()))
    return found


@cache
def texts(folder: str) -> list[tuple[str, str]]:
    """The files of a folder of the checkout."""
    return [
        (str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]
