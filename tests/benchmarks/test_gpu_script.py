"""The script for a GPU walks through all its stages on the CPU, and says what it could not measure."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.pipeline import environment

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "gpu.py"


def run(output: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPT), "--output", str(output), *options]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)


def lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "lines.jsonl").read_text().splitlines()]


def test_a_dry_run_measures_in_every_stage(tmp_path):
    done = run(tmp_path, "--dry-run", "--record", "--results", str(tmp_path / "results.jsonl"))
    log = (tmp_path / "log.txt").read_text()
    assert done.returncode == 0, done.stdout + log
    found: dict[str, list[dict]] = {}
    for line in lines(tmp_path):
        found.setdefault(line["stage"], []).append(line)
    assert list(found) == [
        "doctor", "tests", "layers", "windows", "stages", "many", "step", "loader", "run", "growth", "memory"
    ]  # fmt: skip
    assert found["tests"][-1]["exit code"] == 0
    assert len(found["layers"]) == 3 * 2 * 2 * 2
    assert all(line["forward, ms"] > 0 for line in found["layers"])
    eager = [line for line in found["windows"] if line["way"] == "eager"]
    assert [line["windows/s"] > 0 for line in eager] == [True, True]
    assert {line["error"] for line in found["windows"] if line["way"] != "eager"} == {"RuntimeError: needs CUDA"}
    assert all(line["segment, seconds"] > 0 for line in found["stages"])
    assert found["run"][-1]["steps"] == 2
    recorded = json.loads((tmp_path / "results.jsonl").read_text())
    assert [table["caption"] for table in recorded["tables"]] == list(found)


def test_a_stage_that_fails_or_takes_too_long_does_not_end_the_others(tmp_path):
    done = run(tmp_path, "--dry-run", "--only", "run", "--dataset", str(tmp_path / "missing"))
    assert done.returncode == 1
    assert lines(tmp_path)[-1] == {"stage": "run", "error": "exit code 1, see log.txt"}
    assert "missing" in (tmp_path / "log.txt").read_text()
    late = tmp_path / "late"
    done = run(late, "--dry-run", "--only", "doctor", "--minutes", "0.002")
    assert done.returncode == 1
    assert lines(late)[-1]["error"] in ("stopped after 0 s", "no time was left")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(tmp_path):
    done = run(tmp_path / "none")
    assert done.returncode == 1
    assert "--dry-run" in done.stderr
    assert not (tmp_path / "none").exists()
