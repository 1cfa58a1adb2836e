"""The long fuzzer: a crash or a hang is a finding of one seed, and a run goes on where it ended."""

import importlib
import json
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
CRASHES, HANGS = 3, 5


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("fuzz")
    monkeypatch.setattr(module, "work", faulty_work)
    monkeypatch.setattr(module, "SECONDS_PER_SEED", 1)
    monkeypatch.setattr(module, "CHUNK", 4)
    return module


def faulty_work(seeds: list[int], results: Connection) -> None:
    """Runs in a process of its own."""
    for seed in seeds:
        if seed == CRASHES:
            os._exit(7)
        if seed == HANGS:
            time.sleep(60)
        results.send({"seed": seed, "format": "nii", "change": "", "outcome": "volume", "detail": ""})


def test_a_crash_and_a_hang_are_findings_and_the_rest_goes_on(fuzz: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "outcomes.jsonl"
    outcomes = {one["seed"]: one["outcome"] for one in fuzz.run(list(range(7)), file, 1)}
    assert outcomes == {
        0: "volume",
        1: "volume",
        2: "volume",
        CRASHES: "crash",
        4: "volume",
        HANGS: "hang",
        6: "volume",
    }
    written = file.read_text()
    assert [json.loads(line)["seed"] for line in written.splitlines()] == list(range(7))
    before = time.monotonic()
    assert len(fuzz.run(list(range(6)), file, 1)) == 6
    assert time.monotonic() - before < 1
    assert file.read_text() == written


def test_counts_add_up(fuzz: ModuleType) -> None:
    results = [
        fuzz.result(seed, kind, "") for seed, kind in ((0, "volume"), (14, "refused"), (28, "crash"), (1, "hang"))
    ]
    rows = fuzz.counts(results)["rows"]
    assert [(row["format"], row["findings"]) for row in rows] == [("nii", 1), ("nii.gz", 1), ("all", 2)]
    assert (rows[-1]["volume"], rows[-1]["refused"], rows[-1]["crash"], rows[-1]["hang"]) == (1, 1, 1, 1)
