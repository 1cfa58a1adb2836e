"""Processes that prepare batches: whether this process may start them, and their end with it, however it ends."""

import ast
import ctypes
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from volseg.errors import UsageError

logger = logging.getLogger(__name__)

GUARD = 'if __name__ == "__main__":'
# Seconds between two looks whether the parent is still there, and until a worker that does not end is killed.
LOOK, PATIENCE = 1.0, 3.0
_PR_SET_PDEATHSIG = 1


def require_main_process() -> None:
    """Check that this process is not one that Python starts and that is still importing the caller's script.

    Raises:
        UsageError: it is, because the script calls volseg whenever it is imported.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UsageError(
            "The script that trains is imported by its own child processes, each of which would train again. "
            f"Put the call below {GUARD}"
        )


def possible_workers(wanted: int, sent: object) -> int:
    """The number of processes that this process may start; 0, with a warning, where it may start none.

    Args:
        wanted: as many at most.
        sent: what each of them is sent.
    """
    if wanted and (obstacle := _obstacle(sent)):
        logger.warning("Batches are prepared without child processes: %s", obstacle)
        return 0
    return wanted


def _obstacle(sent: object) -> str:
    """Why child processes cannot be started; "" if they can."""
    if multiprocessing.current_process().daemon:
        return "this process is a daemon, which may not have any."
    if multiprocessing.get_start_method() == "fork":
        return ""
    if not _is_guarded():
        return f"they would run the script again. Put what it calls below {GUARD}"
    try:
        pickle.dumps(sent)
    except Exception as error:
        # Whatever an object of the caller's raises.
        return f"a loss or transform cannot be sent to them ({error}). Define it at the top of a module."
    return ""


def _is_guarded() -> bool:
    """Whether a process that imports the script of this one stays clear of what the script does at the moment."""
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    # Python imports no main module without a file, and no package's.
    if path is None or getattr(getattr(main, "__spec__", None), "name", "").split(".")[-1] == "__main__":
        return True
    line = _line_of(main)
    if line is None:
        return True
    try:
        statements = ast.parse(Path(path).read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return True
    running = [one for one in statements if one.lineno <= line <= (one.end_lineno or one.lineno)]
    return all(isinstance(one, ast.If) and "__name__" in ast.unparse(one.test) for one in running)


def _line_of(module: ModuleType) -> int | None:
    """The line of a module's code that the main thread executes; None if it executes none."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame:
        if frame.f_globals is module.__dict__ and frame.f_code.co_name == "<module>":
            return frame.f_lineno
        frame = frame.f_back
    return None


def serve(end: Connection, worker: int) -> None:  # noqa: ARG001 - PyTorch's interface
    """Prepare a worker: it leaves Ctrl-C and SIGTERM to its parent, and ends with it or when it is told to.

    Args:
        end: readable when the worker shall end.
        worker: its number.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()
    if sys.platform == "linux":
        # Even while it computes.
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_end_with, args=(parent, end), daemon=True).start()


def _end_with(parent: int, end: Connection) -> None:
    """End this process when its parent has ended or `end` is readable."""
    ends: list[Any] = [end]
    if started_by := multiprocessing.parent_process():
        ends.append(started_by.sentinel)
    while os.getppid() == parent and not wait(ends, LOOK):
        pass
    # Not an error, of which PyTorch would tell the parent.
    os._exit(0)


def end_workers(end: Connection, workers: Iterable[BaseProcess]) -> None:
    """Tell workers that `serve` prepared to end, and kill those that do not."""
    with suppress(OSError):
        end.send_bytes(b"end")
    running, deadline = list(workers), time.monotonic() + PATIENCE
    for worker in running:
        worker.join(max(deadline - time.monotonic(), 0))
    for worker in running:
        if worker.is_alive():
            # PyTorch reports a killed worker as an error in the main thread.
            with suppress(RuntimeError):
                worker.kill()
                worker.join(PATIENCE)
