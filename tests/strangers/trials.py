"""One trial of the command line in a forked process: its exit code, its words, its time and its memory.

A fork starts with torch imported, so a trial takes a fraction of a second and what it reports is its own. Its address
space and its time are limited, so that a failing trial ends and takes nothing else with it.
"""

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from volseg.cli import app, console

MIB = 2**20
# Address space beyond that of this process, and seconds, after which the system ends a trial.
ROOM, SECONDS = 3 * 2**30, 30
# The exit code of a trial with an error that no one has turned into a sentence.
UNCAUGHT = 70


class Trial(NamedTuple):
    """The outcome of a trial; `grown` is the memory in MiB that it took beyond what was there at its start."""

    code: int
    output: str
    error: str
    seconds: float
    grown: float


def status(name: str) -> int:
    """A value of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


def command(*arguments: object) -> Callable[[], None]:
    """The command line with these arguments, for `run`."""

    def call() -> None:
        app([str(argument) for argument in arguments], prog_name="volseg")

    return call


def run(call: Callable[[], None], folder: Path) -> Trial:
    """Call something in a forked process.

    Args:
        call: what is tried; it ends by returning, by SystemExit or by an error.
        folder: for what it prints.
    """
    names = [folder / name for name in ("output.txt", "error.txt", "grown.txt")]
    started = time.monotonic()
    if (child := os.fork()) == 0:
        _in_child(call, names)
    _, ended = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(ended)
    output, error = (path.read_text(encoding="utf-8", errors="replace") for path in names[:2])
    grown = float(names[2].read_text(encoding="ascii") or 0)
    return Trial(code, output, error, time.monotonic() - started, grown)


def _in_child(call: Callable[[], None], names: list[Path]) -> None:
    code = UNCAUGHT
    try:
        for number, path in zip((1, 2, 9), names, strict=True):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
        _to_new_streams()
        # Whatever the parent does at this signal, it ends the child.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        limit = status("VmSize:") + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        before = status("VmRSS:")
        try:
            call()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        os.write(9, str(max(status("VmHWM:") - before, 0) / MIB).encode())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _to_new_streams() -> None:
    """Let the consoles of the command line print to the files of the trial."""
    console.output_console.file, console.error_console.file = sys.stdout, sys.stderr


def check_refusal(trial: Trial) -> None:
    """One short sentence of printable characters, exit code 2, within the time and the memory that are promised."""
    assert trial.code == 2, trial.error[-3000:]
    check_words(trial)
    assert len(trial.error.strip().splitlines()) <= 3
    assert trial.seconds < 2 * SLOWNESS
    assert trial.grown < 200


def check_words(trial: Trial) -> None:
    """No traceback, no long message, nothing that a terminal obeys."""
    assert "Traceback" not in trial.error
    assert len(trial.error) < 2500, trial.error[:3000]
    for text in (trial.error, trial.output):
        assert not [one for one in text.replace("\n", "") if not one.isprintable()]


# Machines that share their cores with other work take longer.
SLOWNESS = 4
