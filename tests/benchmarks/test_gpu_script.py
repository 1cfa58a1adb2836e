"""The script for a GPU walks through all its stages on the CPU, and says what it could not measure."""

import errno
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.pipeline import environment, is_running

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
    failed = lines(tmp_path)[-1]
    assert failed["stage"] == "run"
    assert failed["failed"].startswith("InputError: ")
    assert "missing" in (tmp_path / "log.txt").read_text()
    late = tmp_path / "late"
    done = run(late, "--dry-run", "--only", "doctor", "--minutes", "0.002")
    assert done.returncode == 1
    assert lines(late)[-1]["failed"] in ("stopped after 0 s", "no time was left")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(tmp_path):
    done = run(tmp_path / "none")
    assert done.returncode == 1
    assert "--dry-run" in done.stderr
    assert not (tmp_path / "none").exists()


def test_in_a_dry_run_too_the_stages_after_one_that_fails_are_measured(tmp_path):
    done = run(tmp_path, "--dry-run", "--only", "run", "doctor", "--dataset", str(tmp_path / "missing"))
    assert done.returncode == 1
    assert [line["stage"] for line in lines(tmp_path) if "failed" in line] == ["run"]
    assert lines(tmp_path)[-1]["stage"] == "doctor"
    assert done.stdout.endswith("failed: run\n")


def test_an_output_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    done = run(tmp_path / "file", "--dry-run")
    assert done.returncode == 1
    assert done.stderr == f"Could not write {tmp_path / 'file'}: File exists. Choose another --output.\n"


@pytest.mark.skipif(sys.platform != "linux", reason="finds the process of the stages in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_the_script_ends_the_stage_at_work(tmp_path, number):
    """It would hold the GPU."""
    command = [sys.executable, str(SCRIPT), "--output", str(tmp_path), "--dry-run", "--only", *["many"] * 99]
    script = subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    until(lambda: (tmp_path / "lines.jsonl").exists() and lines(tmp_path))
    (stage,) = map(int, Path(f"/proc/{script.pid}/task/{script.pid}/children").read_text().split())
    assert is_running(stage)
    script.send_signal(number)
    script.communicate(timeout=60)
    until(lambda: not is_running(stage))


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A module of the script by name."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module


def test_a_disk_that_gets_full_does_not_end_what_is_measured(part, tmp_path, monkeypatch, capsys):
    kept = part("gpu").Kept(tmp_path / "lines.jsonl")
    kept.append({"stage": "step", "ms": 1})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as during:
        during.setattr(os, "fsync", full)
        kept.append({"stage": "step", "ms": 2})
    kept.append({"stage": "run", "ms": 3})
    printed = capsys.readouterr()
    assert [json.loads(line)["ms"] for line in printed.out.splitlines()] == [1, 2, 3]
    assert printed.err.startswith(f"Could not write {tmp_path / 'lines.jsonl'}: No space left on device.")
    assert [[row["ms"] for row in table["rows"]] for table in kept.tables()] == [[1, 2], [3]]


def test_without_an_answer_of_nvidia_smi_the_stages_go_on(part, tmp_path, monkeypatch):
    common = part("on_gpu.common")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert common.nvidia_smi("--query-gpu=name") == ""
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho H200 $1\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert common.nvidia_smi("--query-gpu=name") == "H200 --query-gpu=name"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_each_test_is_a_line_as_soon_as_it_has_ended(part, tmp_path, capfd):
    checks, common = part("on_gpu.checks"), part("on_gpu.common")
    stage = checks.tests(common.Setting(torch.device("cpu"), False, tmp_path))
    first = next(stage)
    assert first["test"].startswith("tests/gpu/")
    assert first["outcome"] == "SKIPPED"
    *others, last = stage
    assert {line["outcome"] for line in others if "test" in line} == {"SKIPPED"}
    assert [line for line in others if "reason" in line]
    assert last["exit code"] == 0
    assert "skipped" in last["summary"]
    assert "test session starts" in capfd.readouterr().err
    failing = "tests/gpu/test_devices.py::test_x[five members-none-cuda] FAILED [ 5%]"
    assert checks.TEST.match(failing).groups() == (failing.rpartition(" FAILED")[0], "FAILED")
