"""Which tests execute which lines of the package, and how long each test takes.

    python benchmarks/mutants/coverage_map.py --output map.json [TESTS ...]

Runs the tests once with `coverage` (pip install coverage), which is told before each test which one it is. Lines that
run while a fixture of a file is set up count for all tests of the file. Not seen is what other processes execute that a
test starts.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coverage
import pytest

ROOT = Path(__file__).parent.parent.parent
# Left out: tests of texts, of installing, of other programs, and the tests of reading, which are for mutants of it.
LEFT_OUT = ("docs", "packaging", "node", "benchmarks", "fuzzing", "dicom/proof", "test_layers.py", "test_real_scans.py")


class Contexts:
    """A pytest plugin: names the running test to coverage, and notes its outcome and seconds."""

    def __init__(self, measured: coverage.Coverage) -> None:
        self.measured = measured
        self.seconds: dict[str, float] = defaultdict(float)
        self.failed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Around one test."""
        started = time.perf_counter()
        self.measured.switch_context(f"{item.nodeid}|test")
        result = yield
        self.measured.switch_context("")
        self.seconds[item.nodeid] += time.perf_counter() - started
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Iterator[None]:
        """Around the setup of one fixture; of a test that needs it first."""
        if fixturedef.scope == "function":
            return (yield)
        inside = request.node.nodeid.split("::")[0]
        self.measured.switch_context(f"{inside}|shared")
        result = yield
        self.measured.switch_context(f"{self._running(request)}|test")
        return result

    @staticmethod
    def _running(request: Any) -> str:
        return str(getattr(request._pyfuncitem, "nodeid", ""))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """After each part of a test."""
        if report.failed or report.skipped:
            self.failed.add(report.nodeid)


def chosen_files(given: list[str]) -> list[str]:
    """The test files that are run: those given, else all but LEFT_OUT."""
    if given:
        return given
    tests = ROOT / "tests"
    found = sorted(path for path in tests.rglob("test_*.py"))
    left_out = [tests / name for name in LEFT_OUT]
    return [
        str(path.relative_to(ROOT))
        for path in found
        if not any(path == one or path.is_relative_to(one) for one in left_out)
    ]


def lines_of(measured: coverage.Coverage) -> dict[str, dict[str, list[str]]]:
    """File of the package: line: contexts."""
    data = measured.get_data()
    found: dict[str, dict[str, list[str]]] = {}
    for name in data.measured_files():
        lines = data.contexts_by_lineno(name)
        kept = {str(line): sorted(filter(None, contexts)) for line, contexts in lines.items()}
        found[str(Path(name).relative_to(ROOT))] = {line: contexts for line, contexts in kept.items() if contexts}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="*", help="test files; default: all but those left out")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    measured = coverage.Coverage(data_file=None, source=[str(ROOT / "volseg")], config_file=False)
    plugin = Contexts(measured)
    measured.start()
    code = pytest.main(["-q", "-p", "no:cacheprovider", *chosen_files(options.tests)], plugins=[plugin])
    measured.stop()
    document = {"seconds": plugin.seconds, "failed": sorted(plugin.failed), "lines": lines_of(measured)}
    options.output.write_text(json.dumps(document))
    sys.exit(int(code))


if __name__ == "__main__":
    main()
