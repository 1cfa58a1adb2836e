"""Time and memory of commands: each side of a comparison runs in its own processes, in turn; medians are compared.

Memory is that of the whole process tree, sampled every 20 ms or less often, so that sampling takes at most a twentieth
of one core. The peak of a single process is the kernel's high-water mark (only what a process adds after the last
sample is missed); that of several is the largest sum of proportional set sizes (PSS, which count a shared page once).
The larger of the two is reported.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.results import ratio, rounded, table

SAMPLE_SECONDS = 0.02
SAMPLE_FRACTION = 0.05
SHOWN_LINES = 15


@dataclass(frozen=True)
class Side:
    """What one command took: wall and CPU seconds and peak memory of all its processes, and what it printed."""

    seconds: float
    cpu_seconds: float
    peak_gib: float
    printed: str = ""


def run_command(command: Sequence[str | Path]) -> Side:
    """Run a command in its own session, so that all its processes are known, and measure it."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=log, start_new_session=True)
        try:
            with Memory(process.pid) as memory:
                _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
        seconds = time.perf_counter() - started
        printed, logged = (file.seek(0) or file.read() for file in (out, log))
    if process.returncode:
        last = "\n".join([*printed.splitlines(), *logged.splitlines()][-SHOWN_LINES:])
        sys.exit(f"{' '.join(map(str, command))}\nfailed with exit code {process.returncode}:\n{last}")
    return Side(seconds, used.ru_utime + used.ru_stime, memory.peak_bytes / 2**30, printed)


class Memory(threading.Thread):
    """A context that samples the memory of a session's processes."""

    def __init__(self, session: int) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self._session = session
        self._over = threading.Event()

    def __enter__(self) -> "Memory":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        """Sample until the context is left; the body of the thread."""
        pause = 0.0
        while not self._over.wait(pause):
            started = time.perf_counter()
            processes = processes_of(self._session)
            peaks = [bytes_in(process / "status", "VmHWM:") for process in processes]
            together = sum(bytes_in(process / "smaps_rollup", "Pss:") for process in processes) if peaks[1:] else 0
            self.peak_bytes = max(self.peak_bytes, together, *peaks)
            pause = max(SAMPLE_SECONDS, (time.perf_counter() - started) / SAMPLE_FRACTION)


def processes_of(session: int) -> list[Path]:
    """The folders in /proc of a session's processes."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            # The name, in brackets, may hold anything; the session is the fourth field after it.
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[3]) == session:
            found.append(process)
    return found


def bytes_in(file: Path, key: str) -> int:
    """A line such as "VmHWM: 12 kB" of a process's file; 0 when the process has ended."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)


def run_in_turn(commands: Mapping[str, Sequence[str | Path]], repeats: int) -> dict[str, Side]:
    """Run all commands one after the other, `repeats` times; the medians of each command."""
    runs: dict[str, list[Side]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            runs[name].append(run_command(command))
            print(f"{name}: {runs[name][-1].seconds:.1f} s", file=sys.stderr)
    return {
        name: Side(
            statistics.median(one.seconds for one in found),
            statistics.median(one.cpu_seconds for one in found),
            statistics.median(one.peak_gib for one in found),
            found[-1].printed,
        )
        for name, found in runs.items()
    }


def report_side(work: Callable[[], object], repeats: int) -> None:
    """Run `work` once to warm up and then `repeats` times; print the seconds of each repeat as JSON."""
    work()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"seconds": seconds}))


def run_side(arguments: Sequence[str | Path], python: str | Path = sys.executable) -> Side:
    """Run a Python script that prints what `report_side` prints, in its own process: the median of its warm seconds.

    CPU seconds and peak memory are those of the whole process.
    """
    side = run_command([python, *arguments])
    return replace(side, seconds=statistics.median(json.loads(side.printed.splitlines()[-1])["seconds"]))


def compared(sides: Mapping[str, Side], reference: str) -> dict[str, Any]:
    """A table with one row per side, and its speed and memory against those of the side called `reference`."""
    rows = [
        {
            "side": name,
            "seconds": rounded(side.seconds),
            "CPU seconds": rounded(side.cpu_seconds),
            "peak GiB": rounded(side.peak_gib),
        }
        for name, side in sides.items()
    ]
    fast = ratio("times as fast", "seconds", baseline=reference)
    return table(rows, [fast, ratio("times the memory", "peak GiB", baseline=reference)])


def data_folder() -> Path:
    """The folder named by VOLSEG_DATA."""
    named = os.environ.get("VOLSEG_DATA")
    if not named or not Path(named).is_dir():
        sys.exit(
            "VOLSEG_DATA names no folder. Set it to the folder of the data; `--help` says what a script needs of it."
        )
    return Path(named)
