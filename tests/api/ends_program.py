"""Trains phantoms again and again, each time in a process forked from this one, and ends each run in another way.

    python tests/api/ends_program.py DATA FOLDER METHOD TRIAL...

METHOD is how batch workers are started: two that are forked, else one. A trial is WAY@MOMENT:RUN, where MOMENT is the
beginning of what progress reports and RUN a folder in FOLDER; or resume:RUN. It prints one JSON document: for each
trial the exit code, the seconds from the end of the run to the end of its process, and the processes that were left 10
seconds later.
"""

import gc
import json
import math
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import torch

import volseg
import volseg.api.train
from tests.pipeline import TINY, is_running

LIMIT = 60
# Checkpoints after every step.
SETTINGS = ("training.checkpoint_seconds=0.0001", "training.validations=2")


def note(trace: Path) -> None:
    """Write down the time and the children of this process."""
    children = [child.pid for child in multiprocessing.active_children()]
    trace.write_text(json.dumps({"time": time.time(), "children": children}))


def end(way: str, trace: Path) -> None:
    """End this process in one way, after noting the time and its children."""
    note(trace)
    if way == "error":
        raise ValueError("a callback raises")
    if way == "exit":
        sys.exit(5)
    if way == "quit":
        os._exit(6)
    if way == "interrupt":
        raise KeyboardInterrupt
    for _ in range(2 if way == "SIGINT2" else 1):
        os.kill(os.getpid(), getattr(signal, way.removesuffix("2")))


def train(trial: str, data: str, folder: Path) -> None:
    """One run, in a process of its own."""
    what, _, run = trial.partition(":")
    way, _, moment = what.partition("@")
    ended = []
    workers = f"training.workers={2 if multiprocessing.get_start_method() == 'fork' else 1}"

    def progress(stage: str, done: float, text: str) -> None:
        if what != "resume" and not ended and f"{stage} {text}".startswith(moment):
            ended.append(moment)
            end(way, folder / f"{run}.trace")

    def nan(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        ended.append(target)
        if len(ended) == 6:
            note(folder / f"{run}.trace")
        return logits.mean() * (math.nan if len(ended) >= 6 else 1)

    volseg.train(
        data,
        folder / run,
        steps=8,
        device="cpu",
        resume=True,
        overrides=() if (folder / run / "settings.yaml").exists() else (*TINY, *SETTINGS, workers),
        progress=progress,
        loss=nan if way == "nan" else None,
    )


def wait(pid: int) -> int | None:
    """The exit code of a child; None if it did not end within the limit, and then it is killed."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def main(data: str, folder: Path, method: str, trials: list[str]) -> None:
    multiprocessing.set_start_method(method)
    torch.set_num_threads(1)
    # Python looks through all objects of torch when it ends, which takes seconds in a forked process.
    gc.freeze()
    found = {}
    for trial in trials:
        pid = os.fork()
        if pid == 0:
            sys.stdout = sys.stderr
            # Whatever it raises ends the child, as it would end a script.
            train(trial, data, folder)
            # Nothing is tested of the end of a run that nothing disturbed.
            os._exit(0)
        code, trace = wait(pid), folder / f"{trial.partition(':')[2]}.trace"
        noted = json.loads(trace.read_text()) if trace.exists() else {"time": time.time(), "children": []}
        seconds, deadline = time.time() - noted["time"], time.monotonic() + 10
        while any(map(is_running, noted["children"])) and time.monotonic() < deadline:
            time.sleep(0.05)
        left = [child for child in noted["children"] if is_running(child)]
        found[trial] = {"code": code, "seconds": seconds, "children": len(noted["children"]), "left": left}
        trace.unlink(missing_ok=True)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
