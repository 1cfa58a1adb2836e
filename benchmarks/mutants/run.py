"""Put small faults into the package, one at a time, and see whether its tests notice them.

    python benchmarks/mutants/coverage_map.py --output map.json
    python benchmarks/mutants/run.py --map map.json --seed 18 --count 160 --output outcomes.jsonl [--listed] [--record]

A server with pytest, torch, monai, nibabel and SimpleITK loaded, but not volseg, forks for each mutant. The fork
imports the changed text in place of the module's file (hook/sitecustomize.py), as do the processes that tests start;
the disk is not changed. It runs the tests that execute the changed line (choose.py), and stops at the first failure or
after 60 seconds. A mutant is killed by a test that fails, or that hangs until then.
At the end every test that killed a mutant runs once more without any: one that fails then does not count.
"""

import argparse
import importlib
import json
import os
import select
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
from common.record import publish, record_options
from common.results import headline, table

from mutants.choose import Map, chosen, read_maps
from mutants.equivalent import reason_of
from mutants.hook.sitecustomize import install
from mutants.listed import listed
from mutants.make import KINDS, ROOT, Mutant, draw

LIMIT_SECONDS = 60.0
CONTROL_SECONDS = 1800.0
# A test that takes ten times as long as without a mutant, and this much more, hangs.
HANGS_SECONDS = 30.0
LIBRARIES = (
    # Not hypothesis, whose assertions pytest rewrites.
    "blosc2", "cc3d", "contourpy", "highdicom", "isal.isal_zlib", "matplotlib.figure", "monai.transforms",
    "nibabel", "pydantic", "pydicom", "rich.progress", "safetensors.torch", "scipy.ndimage", "SimpleITK",
    "skimage.transform", "torch.utils.tensorboard", "typer.testing", "yaml",
)  # fmt: skip
HOOK = Path(__file__).parent / "hook"


@dataclass
class Watch:
    """What the tests of a fork have told so far."""

    running: str = ""
    since: float = 0.0
    done: int = 0
    failed: str = ""
    ended: bool = False
    died: bool = False
    log: str = ""

    def hear(self, line: str) -> None:
        """Take in one line of the fork: a word and a test."""
        word, _, test = line.partition(" ")
        if word == "starts":
            self.running, self.since = test, time.monotonic()
        elif word == "passed":
            self.done += 1
        elif word == "failed":
            self.failed = self.failed or test
        elif word == "end":
            self.ended = True


@dataclass(eq=False)
class Teller:
    """A pytest plugin: runs `tests` alone, in this order, and tells a pipe about each."""

    tests: Sequence[str]
    pipe: int

    def tell(self, line: str) -> None:
        """Write one line to the pipe."""
        os.write(self.pipe, f"{line}\n".encode())

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave the chosen tests, in their order."""
        place = {test: index for index, test in enumerate(self.tests)}
        items[:] = sorted((one for one in items if one.nodeid in place), key=lambda one: place[one.nodeid])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A test file that cannot be imported notices the mutant as well."""
        if report.failed:
            self.tell(f"failed {report.nodeid} (collecting)")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Before each test."""
        self.tell(f"starts {nodeid}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """After each part of a test."""
        if report.failed:
            self.tell(f"failed {report.nodeid}")
        elif report.when == "teardown":
            self.tell(f"passed {report.nodeid}")


def in_fork(source: tuple[Path, Path] | None, tests: Sequence[str], pipe: int, scratch: Path) -> None:
    """Run tests in this process, with the text of a file replaced, and end it."""
    os.setsid()
    log = os.open(scratch / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if source:
        described = json.dumps({"file": str(source[0]), "source": str(source[1])})
        os.environ["VOLSEG_MUTANT"] = described
        os.environ["PYTHONPATH"] = os.pathsep.join([str(HOOK), os.environ.get("PYTHONPATH", "")])
        install(described)
    files = dict.fromkeys(test.partition("::")[0] for test in tests)
    options = ["-q", "-x", "-p", "no:cacheprovider", f"--basetemp={scratch / 'tmp'}"]
    teller = Teller(tests, pipe)
    pytest.main([*options, *files], plugins=[teller])
    teller.tell("end")
    os._exit(0)


def watched(source: tuple[Path, Path] | None, tests: Sequence[str], limit: float) -> Iterator[Watch]:
    """Fork, and yield what its tests told at each word and each half second, until they end."""
    with tempfile.TemporaryDirectory(prefix="volseg-mutant-") as folder:
        reading, writing = os.pipe()
        fork = os.fork()
        if not fork:
            os.close(reading)
            try:
                in_fork(source, tests, writing, Path(folder))
            finally:
                os._exit(1)
        os.close(writing)
        watch, rest, until = Watch(), b"", time.monotonic() + limit
        try:
            while time.monotonic() < until and not watch.ended:
                if select.select([reading], [], [], 0.5)[0]:
                    found = os.read(reading, 65536)
                    if not found:
                        watch.died = True
                        break
                    *lines, rest = (rest + found).split(b"\n")
                    for line in lines:
                        watch.hear(line.decode())
                yield watch
        finally:
            os.close(reading)
            end_group(fork)
            watch.log = (Path(folder) / "log.txt").read_text(encoding="utf-8", errors="replace")
        yield watch


def end_group(fork: int) -> None:
    """End a fork and the processes that its tests have started."""
    # It may not have a group yet.
    for end in (os.killpg, os.kill):
        with suppress(ProcessLookupError, PermissionError):
            end(fork, signal.SIGKILL)
    os.waitpid(fork, 0)


def tried(mutant: Mutant, known: Map) -> dict[str, Any]:
    """The outcome of one mutant: killed, with the test, or survived, with the number of tests."""
    tests = chosen(mutant, known)
    started, watch = time.monotonic(), Watch(ended=True)
    if tests:
        with tempfile.NamedTemporaryFile("w", suffix=".py", encoding="utf-8") as text:
            text.write(mutant.source())
            text.flush()
            for watch in watched((ROOT / mutant.file, Path(text.name)), tests, LIMIT_SECONDS):
                if watch.failed:
                    break
        assert watch.running or watch.failed, f"no test ran:\n{watch.log}"
    outcome = outcome_of(watch, known)
    return {
        **{key: value for key, value in asdict(mutant).items() if key not in ("start", "names")},
        "outcome": outcome,
        "test": "" if outcome == "survived" else watch.failed or watch.running,
        "chosen": len(tests),
        "passed": watch.done,
        "all_run": watch.ended,
        "seconds": round(time.monotonic() - started, 1),
    }


def outcome_of(watch: Watch, known: Map) -> str:
    """Killed, hangs or survived."""
    if watch.failed or watch.died:
        return "killed"
    if watch.ended:
        return "survived"
    allowed = HANGS_SECONDS + 10 * known.seconds[watch.running]
    return "hangs" if time.monotonic() - watch.since > allowed else "survived"


def control(tests: Iterable[str], known: Map) -> set[str]:
    """The tests that fail without any mutant."""
    order = [test for test in known.seconds if test in set(tests)]
    found: set[str] = set()
    while order:
        watch = deque(watched(None, order, CONTROL_SECONDS), maxlen=1).pop()
        assert watch.failed or watch.done == len(order), f"{watch.done} of {len(order)} tests passed:\n{watch.log}"
        if not watch.failed:
            break
        found.add(watch.failed)
        order = [test for test in order if test != watch.failed]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--map", type=Path, nargs="+", required=True, help="of coverage_map.py; later ones count more")
    parser.add_argument("--seed", type=int, default=18)
    parser.add_argument("--count", type=int, default=160, help="mutants to draw")
    parser.add_argument("--without", nargs="*", default=[], help="files to draw no mutant from")
    parser.add_argument("--listed", action="store_true", help="also the faults of listed.py, first")
    parser.add_argument("--again", action="store_true", help="try those once more that survived by --output")
    parser.add_argument("--output", type=Path, required=True, help="one JSON line per mutant; those in it are kept")
    record_options(parser)
    options = parser.parse_args()
    load_libraries()
    known = read_maps(options.map)
    mutants = [*(listed() if options.listed else []), *draw(options.count, options.seed, tuple(options.without))]
    done = [json.loads(line) for line in options.output.read_text().splitlines()] if options.output.exists() else []
    if options.again:
        done = [line for line in done if line["outcome"] != "survived"]
        options.output.write_text("".join(json.dumps(line) + "\n" for line in done))
    for number, mutant in enumerate(mutants, 1):
        if not any(is_of(line, mutant) for line in done):
            line = tried(mutant, known)
            done.append(line)
            with options.output.open("a") as output:
                output.write(json.dumps(line) + "\n")
            told = (line["outcome"], line["seconds"], mutant.file, mutant.line, mutant.kind, line["test"])
            print(number, *told, flush=True)
    failing = control((line["test"] for line in done if line["test"]), known)
    print("fail without a mutant:", sorted(failing) or "none")
    judged = [judgement(line, failing) for line in done]
    options.output.write_text("".join(json.dumps(line) + "\n" for line in judged))
    report(options, judged)


def judgement(line: dict[str, Any], failing: set[str]) -> dict[str, Any]:
    """An outcome, with the reason where the mutant means the same; killed only by tests that pass without a mutant."""
    if line["test"] in failing:
        line = {**line, "outcome": "survived", "test": ""}
    reason = reason_of(line) if line["outcome"] == "survived" else None
    return {**line, "outcome": "equivalent", "reason": reason} if reason else line


def is_of(line: dict[str, Any], mutant: Mutant) -> bool:
    """Whether an outcome is that of a mutant."""
    return all(line[key] == getattr(mutant, key) for key in ("kind", "file", "line", "old", "new"))


def load_libraries() -> None:
    """Load what each fork would otherwise load by itself."""
    for name in LIBRARIES:
        importlib.import_module(name)
    assert not any(name.partition(".")[0] == "volseg" for name in sys.modules)


def report(options: argparse.Namespace, done: Sequence[dict[str, Any]]) -> None:
    """Print the survivors, and print and record how many of each kind were killed."""
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in ("listed", *KINDS)}
    for line in done:
        outcome = "killed" if line["outcome"] == "hangs" else line["outcome"]
        counts[line["kind"]].update(("tried", outcome))
        if outcome != "killed":
            print(f"{outcome}: {line['file']}:{line['line']} {line['kind']}: {line['old']} -> {line['new']}")
    columns = ("tried", "killed", "equivalent", "survived")
    rows = [{"kind": kind, **{key: one[key] for key in columns}} for kind, one in counts.items() if one]
    rows.append({"kind": "all", **{key: sum(row[key] for row in rows) for key in columns}})
    head = [headline("small faults in the package", "all", key) for key in columns]
    publish(options, "mutants", "Small faults, one at a time: how many the tests notice", [table(rows)], head)


if __name__ == "__main__":
    main()
