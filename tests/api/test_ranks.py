"""Training runs of two processes: they equal the run of one process; lost processes; wrong calls."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipeline import TINY, environment, is_running, leftovers, same_weights, torchrun
from volseg import train
from volseg.modelfile import read_card

OVERRIDES = (*TINY, "training.precision=fp32", "training.workers=0", "training.checkpoint_seconds=0.05")
STEPS = 20


def command(phantoms, run, *more: str) -> list[str]:
    settings = [argument for override in (*OVERRIDES, *more) for argument in ("--set", override)]
    options = ["--output", run, "--folds", 2, "--steps", STEPS, "--device", "cpu", "--resume"]
    return torchrun("-m", "tests.api.few_cases", "train", phantoms, *options, *settings)


def finished(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=600)


def sentences(errors: str) -> list[str]:
    """The error messages of volseg, without the lines of torchrun."""
    return [line.removeprefix("Error: ") for line in errors.splitlines() if line.startswith("Error: ")]


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def shared(phantoms, tmp_path_factory):
    """A finished run of two processes."""
    run = tmp_path_factory.mktemp("runs") / "shared"
    done = finished(command(phantoms, run))
    assert done.returncode == 0, done.stderr
    return run


def test_the_run_of_two_processes_equals_that_of_one(phantoms, shared, tmp_path, monkeypatch):
    monkeypatch.setattr("volseg.postprocessing.choosing.ENOUGH_CASES", 1)
    monkeypatch.setattr("volseg.postprocessing.choosing.LARGEST_LOSS", 1.0)
    alone = train(phantoms, tmp_path / "alone", folds=2, steps=STEPS, overrides=OVERRIDES, device="cpu")
    assert len(metrics(alone)) == len(metrics(shared)) == STEPS
    for one, two in zip(metrics(alone), metrics(shared), strict=True):
        assert one.keys() == two.keys()
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["learning_rate"] == one["learning_rate"]
        assert two.get("dice") == pytest.approx(one.get("dice"), abs=1e-3)
    one, two = (json.loads((run / "validation.json").read_text()) for run in (alone, shared))
    assert [case["name"] for case in two["cases"]] == [case["name"] for case in one["cases"]]
    assert two["mean"]["foreground_dice"] == pytest.approx(one["mean"]["foreground_dice"], abs=1e-3)


def test_every_process_applies_the_chosen_postprocessing(shared):
    rules = read_card(shared / "model.safetensors").postprocessing
    scores = json.loads((shared / "validation.json").read_text())
    assert rules
    assert scores["postprocessing"] == {name: rule.model_dump() for name, rule in rules.items()}
    for name, rule in rules.items():
        assert rule.dice_before < rule.dice_after == scores["mean"]["labels"][name]["dice"]


def test_one_process_calibrates_the_model_of_two_as_they_did(phantoms, shared, tmp_path):
    run = shutil.copytree(shared, tmp_path / "run")
    (run / "calibration.json").unlink()
    options = ["--output", str(run), "--device", "cpu", "--resume", "--finish"]
    done = finished([sys.executable, "-m", "tests.api.few_cases", "train", str(phantoms), *options])
    assert done.returncode == 0, done.stderr
    assert same_weights(shared / "model.safetensors", run / "model.safetensors")
    assert (run / "calibration.json").read_bytes() == (shared / "calibration.json").read_bytes()
    calibration = read_card(run / "model.safetensors").calibration
    assert calibration == read_card(shared / "model.safetensors").calibration
    validation = [case["name"] for case in json.loads((run / "validation.json").read_text())["cases"]]
    scans = json.loads((run / "calibration.json").read_text())["scans"]
    # Each case as it is and in one degraded copy, in the order of the cases and not of the ranks.
    assert [scan["case"] for scan in scans] == [name for name in validation for _ in range(2)]
    assert len(validation) == calibration.cases == calibration.degraded == 3
    assert calibration.labels.keys() == {"ball", "rod"}
    error = f"{100 * calibration.after.error:.1f} after it (temperature {calibration.temperature:g})"
    assert error in (run / "report.html").read_text(encoding="utf-8")


def test_only_one_process_writes(shared):
    assert (shared / "log.txt").read_text().count("Finished after") == 1
    assert len(list(shared.glob("events.out.tfevents.*"))) == 1
    assert not leftovers(shared)


def pid_of_rank(launcher: int, rank: int) -> int:
    """The process ID of a rank that torchrun started."""
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{pid}/environ").read_text().split("\0"):
            return int(pid)
    raise AssertionError(f"there is no rank {rank}")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run_with_one_message_and_the_run_resumes(rank, phantoms, shared, tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen(command(phantoms, run), env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (run / "checkpoint" / "state.safetensors").exists():
        time.sleep(0.005)
    os.kill(pid_of_rank(process.pid, rank), signal.SIGKILL)
    killed = time.monotonic()
    _, errors = process.communicate(timeout=300)
    assert time.monotonic() - killed < 60
    assert process.returncode == 1
    (sentence,) = sentences(errors)
    assert "A process of this run was lost" in sentence
    assert "--resume" in sentence
    assert not (run / "model.safetensors").exists()

    again = finished(command(phantoms, run))
    assert again.returncode == 0, again.stderr
    assert same_weights(shared / "model.safetensors", run / "model.safetensors")
    assert [record["step"] for record in metrics(run)] == list(range(1, STEPS + 1))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
@pytest.mark.parametrize("count", [1, 2])
def test_the_processes_of_a_killed_launcher_save_their_state_and_end(count, phantoms, tmp_path):
    run = tmp_path / "run"
    launched = [str(100_000) if word == str(STEPS) else str(word) for word in command(phantoms, run)]
    launched[launched.index("--nproc-per-node") + 1] = str(count)
    process = subprocess.Popen(launched, env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (run / "metrics.jsonl").exists():
        time.sleep(0.05)
    pids = [pid_of_rank(process.pid, rank) for rank in range(count)]
    process.kill()
    # The ranks hold its standard error open, so this waits for them.
    _, errors = process.communicate(timeout=60)
    assert [pid for pid in pids if is_running(pid)] == []
    assert "Traceback" not in errors
    assert (run / "checkpoint" / "state.safetensors").exists()


def test_a_wrong_call_gives_one_message_and_leaves_no_folder(phantoms, tmp_path):
    done = finished(command(phantoms, tmp_path / "run", "plan.batch_size=1"))
    assert done.returncode == 1  # torchrun's own
    (sentence,) = sentences(done.stderr)
    assert "A batch of 1 cannot be split over 2 processes" in sentence
    assert not (tmp_path / "run").exists()
