"""The process that forks trials: lines of JSON in, one line of JSON out for each.

    LD_PRELOAD=shim.so python -m tests.faults.server shim.so

Nothing of torch runs here, only in the forked processes: threads do not survive a fork.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from typing import Any

HEAVY = (
    "torch", "monai", "nibabel", "SimpleITK", "pydicom", "highdicom", "matplotlib.figure", "volseg.api.predict",
    "volseg.api.train", "volseg.api.evaluation", "volseg.api.convert", "volseg.api.ensemble", "volseg.api.importing",
    "volseg.api.demo", "volseg.api.describe", "volseg.report.preview", "volseg.dicom.segmentation",
    "volseg.data.io.readers.itk", "volseg.cli", "monai.transforms", "scipy.ndimage",
    "torch.optim", "torch._dynamo", "torch.utils.data",
)  # fmt: skip


def main() -> None:
    shim = ctypes.CDLL(sys.argv[1])
    for name in HEAVY:
        importlib.import_module(name)
    # Drawing charts takes most of the time of a short training, and no call on the disk.
    importlib.import_module("volseg.report.run_report")._inline_svg = lambda figure, what: what
    # What was imported is not looked at again in each trial.
    gc.collect()
    gc.freeze()
    # Trials leave the standard streams to the command.
    requests, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    for line in requests:
        trial = json.loads(line)
        started = time.monotonic()
        process = os.fork()
        if process == 0:
            os._exit(start(trial, shim))
        code = wait(process, trial)
        answers.write(json.dumps({"code": code, "seconds": time.monotonic() - started}) + "\n")
        answers.flush()


def start(trial: dict[str, Any], shim: ctypes.CDLL) -> int:
    """Run a command in this forked process; its exit code, after all that Python does at exit but freeing memory."""
    os.setpgid(0, 0)
    log = os.open(trial["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for handle, path in ((0, os.devnull), (1, trial["stdout"]), (2, trial["stderr"])):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, handle)
        os.close(opened)
    os.environ.update(trial["environment"])
    os.chdir(trial["folder"])
    tempfile.tempdir = None
    tempfile.gettempdir()
    for name, value in trial["patches"].items():
        module, _, attribute = name.rpartition(".")
        setattr(importlib.import_module(module), attribute, value)
    sys.argv = ["volseg", *trial["arguments"]]
    shim.faults_arm(trial["folder"].encode(), trial["mode"], trial["at"], trial["errno"], log)
    try:
        importlib.import_module("volseg.cli").main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    # As Python itself does, in this order.
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code


def wait(process: int, trial: dict[str, Any]) -> int | None:
    """The exit code of a trial, negative for a signal; None if it had to be ended because it hung."""
    handle = os.pidfd_open(process)
    try:
        hangs = not select.select([handle], [], [], trial["kill_after"] or trial["timeout"])[0]
    finally:
        os.close(handle)
    if hangs:
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    end_children(process)
    return None if hangs and not trial["kill_after"] else os.waitstatus_to_exitcode(status)


def end_children(group: int) -> None:
    """End what the command has left behind, such as processes that prepare batches."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    main()
