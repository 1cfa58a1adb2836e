"""All that is to be measured on a GPU, in 15 minutes: checks, layers, windows, whole scans, training.

    python benchmarks/gpu.py [--output FOLDER] [--dataset DECATHLON] [--minutes 14] [--only STAGE...] [--record]
    python benchmarks/gpu.py --dry-run

Each stage runs in its own process with a time limit of its own, the most important first. Each figure is appended to
`lines.jsonl` in the output folder as soon as it is known, so a machine that goes away leaves all that was measured;
`log.txt` has what the stages print. A stage that fails or takes too long is a line with the reason ("failed"), and the
next one begins; whatever ends the script ends the stage at work. --dry-run walks through all stages with tiny sizes on
the CPU, in one process. Needs volseg, pytest and a CUDA device; nothing is downloaded.
"""

import argparse
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common.record import publish, record_options
from common.results import table
from on_gpu import checks, layers, predicting, training, windows
from on_gpu.common import Line, Setting


class Stage(NamedTuple):
    """What is measured, and the seconds it may take."""

    measure: Callable[[Setting], Iterator[Line]]
    seconds: float


STAGES = {
    "doctor": Stage(checks.doctor, 60),
    "tests": Stage(checks.tests, 150),
    "layers": Stage(layers.measure, 75),
    "windows": Stage(windows.measure, 120),
    "stages": Stage(predicting.stages, 90),
    "many": Stage(predicting.many, 90),
    "step": Stage(training.step, 45),
    "loader": Stage(training.loader, 120),
    "run": Stage(training.run, 120),
    "growth": Stage(training.growth, 60),
    "memory": Stage(predicting.memory, 60),
}
LINES, LOG = "lines.jsonl", "log.txt"
# What a line calls the reason why its stage did not measure everything.
FAILED = "failed"


def main() -> None:
    options = parsed()
    if options.stages:
        sys.exit(measure(options))
    if not options.dry_run and not torch.cuda.is_available():
        sys.exit("There is no CUDA device. Add --dry-run to see that everything runs, on the CPU.")
    output = options.output or Path(tempfile.mkdtemp(prefix="gpu-"))
    try:
        output.mkdir(parents=True, exist_ok=True)
        kept = Kept(output / LINES)
    except OSError as error:
        sys.exit(f"Could not write {output}: {error.strerror}. Choose another --output.")
    # As Ctrl-C does, so that the stage at work ends as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))
    deadline = time.monotonic() + 60 * options.minutes
    wanted = options.only or list(STAGES)
    # A process of its own for each stage takes most of the time of a dry run: loading PyTorch and volseg.
    for names in [wanted] if options.dry_run else [[name] for name in wanted]:
        limit = min(sum(STAGES[name].seconds for name in names), deadline - time.monotonic())
        if limit > 0:
            run_stages(names, limit, kept, options)
        else:
            kept.append({"stage": names[-1], FAILED: "no time was left"})
    publish(options, "gpu", "What a GPU does", kept.tables())
    failed = list(dict.fromkeys(line["stage"] for line in kept.lines if FAILED in line))
    print(f"{kept.path}: {'failed: ' + ', '.join(failed) if failed else 'no stage failed'}")
    sys.exit(bool(failed))


class Kept:
    """The lines so far, in a file from the moment that they are known.

    Args:
        path: of the file; what it holds stays.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, list[Line]()
        path.touch()
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def append(self, line: Line) -> None:
        """Print a line, and write it to the file so that it stays; a full disk does not end what is measured."""
        self.lines.append(line)
        text = json.dumps(line)
        print(text, flush=True)
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            print(f"Could not write {self.path}: {error.strerror}. The line above is lost there.", file=sys.stderr)

    def tables(self) -> list[dict[str, Any]]:
        """A table for each stage."""
        found: dict[str, list[Line]] = {}
        for line in self.lines:
            row = {name: value for name, value in line.items() if value is not None and name not in ("at", "stage")}
            found.setdefault(line["stage"], []).append(row)
        return [table(rows, caption=name) for name, rows in found.items()]


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder of the lines and the log; default: a new temporary one")
    parser.add_argument("--dataset", type=Path, help="to train a minute on; default: phantoms")
    parser.add_argument("--minutes", type=float, default=14.0, help="for all stages; what does not fit is left out")
    parser.add_argument("--only", nargs="+", choices=STAGES, metavar="STAGE", help=f"some of {', '.join(STAGES)}")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, to see that everything runs")
    record_options(parser)
    parser.add_argument("--stages", nargs="+", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.toy, options.device = options.dry_run, "cpu" if options.dry_run else "cuda"
    return options


def run_stages(names: list[str], limit: float, kept: Kept, options: argparse.Namespace) -> None:
    """Run stages in a process of their own, and keep its lines as they come, what went wrong included."""
    command = [sys.executable, __file__, *["--dry-run"] * options.dry_run]
    command += ["--dataset", str(options.dataset.absolute())] if options.dataset else []
    started, stage = time.monotonic(), names[0]
    with (
        open(kept.path.with_name(LOG), "a", encoding="utf-8") as log,
        subprocess.Popen(
            [*command, "--stages", *names], stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        ) as process,
    ):
        late = threading.Timer(limit, end, (process,))
        late.start()
        try:
            assert process.stdout
            for text in process.stdout:
                line = json.loads(text)
                stage = line["stage"]
                if len(line) > 1:
                    kept.append({**line, "at": round(time.monotonic() - started, 1)})
            code = process.wait()
            expired = not late.is_alive()
        finally:
            late.cancel()
            end(process)
    if expired:
        kept.append({"stage": stage, FAILED: f"stopped after {limit:.0f} s"})
    elif code:
        kept.append({"stage": stage, FAILED: f"exit code {code}, see {LOG}"})


def end(process: "subprocess.Popen[str]") -> None:
    """End a process of stages with all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def measure(options: argparse.Namespace) -> int:
    """The process of stages: a JSON line for each figure, with nothing else on standard output; returns its exit code.

    A line with the name of a stage alone says that it begins.
    """
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(line: Line) -> None:
        print(json.dumps(line, default=str), file=lines, flush=True)

    device = torch.device(options.device)
    for name in options.stages:
        tell({"stage": name})
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            setting = Setting(device, options.dry_run, Path(folder), options.dataset)
            try:
                for line in STAGES[name].measure(setting):
                    tell({"stage": name, **line})
            except Exception as error:  # whatever it is, the line is the place where it is seen
                traceback.print_exc()
                tell({"stage": name, FAILED: f"{type(error).__name__}: {str(error)[:1000]}"})
    return 0


def end_with(parent: int) -> None:
    """End this process, and what it has started, when the one that started it has ended: it would hold the GPU."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
