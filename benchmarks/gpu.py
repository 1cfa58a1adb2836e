"""All that is to be measured on a GPU, in 15 minutes: checks, layers, windows, whole scans, training.

    python benchmarks/gpu.py [--output FOLDER] [--dataset DECATHLON] [--minutes 14] [--only STAGE...] [--record]
    python benchmarks/gpu.py --dry-run

Each stage runs in its own process with a time limit of its own, the most important first. Each figure is appended to
`lines.jsonl` in the output folder as soon as it is known, so a machine that goes away leaves all that was measured;
`log.txt` has what the stages print. A stage that fails or takes too long is a line with its error, and the next one
begins. --dry-run walks through all stages with tiny sizes on the CPU, in one process. Needs volseg, pytest and a CUDA
device; nothing is downloaded.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
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


def main() -> None:
    options = parsed()
    if options.stages:
        measure(options)
        return
    if not options.dry_run and not torch.cuda.is_available():
        sys.exit("There is no CUDA device. Add --dry-run to see that everything runs, on the CPU.")
    output = options.output or Path(tempfile.mkdtemp(prefix="gpu-"))
    output.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * options.minutes
    wanted = options.only or list(STAGES)
    failed = []
    # A process of its own for each stage takes most of the time of a dry run: loading PyTorch and volseg.
    for names in [wanted] if options.dry_run else [[name] for name in wanted]:
        limit = min(sum(STAGES[name].seconds for name in names), deadline - time.monotonic())
        error = run_stages(names, limit, output, options) if limit > 0 else "no time was left"
        if error:
            failed += names
            append(output, {"stage": names[-1], "error": error})
    publish(options, "gpu", "What a GPU does", tables_of(output))
    print(f"{output / LINES}: {'failed: ' + ', '.join(failed) if failed else 'no stage failed'}")
    sys.exit(bool(failed))


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


def run_stages(names: list[str], limit: float, output: Path, options: argparse.Namespace) -> str | None:
    """Run stages in a process of their own, and append its lines as they come; returns what went wrong."""
    command = [sys.executable, __file__, *["--dry-run"] * options.dry_run]
    command += ["--dataset", str(options.dataset.absolute())] if options.dataset else []
    started = time.monotonic()
    with (
        open(output / LOG, "a", encoding="utf-8") as log,
        subprocess.Popen(
            [*command, "--stages", *names], stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        ) as process,
    ):
        late = threading.Timer(limit, os.killpg, (process.pid, signal.SIGKILL))
        late.start()
        assert process.stdout
        for line in process.stdout:
            append(output, {**json.loads(line), "at": round(time.monotonic() - started, 1)})
        code = process.wait()
        expired = not late.is_alive()
        late.cancel()
    if expired:
        return f"stopped after {limit:.0f} s"
    return f"exit code {code}, see {LOG}" if code else None


def append(output: Path, line: Line) -> None:
    """Print a line, and write it to the file so that it stays."""
    print(json.dumps(line))
    with open(output / LINES, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(line) + "\n")
        lines.flush()
        os.fsync(lines.fileno())


def tables_of(output: Path) -> list[dict[str, Any]]:
    """A table for each stage."""
    found: dict[str, list[Line]] = {}
    for text in (output / LINES).read_text(encoding="utf-8").splitlines():
        line = {name: value for name, value in json.loads(text).items() if value is not None and name != "at"}
        found.setdefault(line.pop("stage"), []).append(line)
    return [table(rows, caption=name) for name, rows in found.items()]


def measure(options: argparse.Namespace) -> None:
    """The process of stages: a JSON line for each figure, with nothing else on standard output."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    device = torch.device(options.device)
    for name in options.stages:
        with tempfile.TemporaryDirectory() as folder:
            setting = Setting(device, options.dry_run, Path(folder), options.dataset)
            for line in STAGES[name].measure(setting):
                print(json.dumps({"stage": name, **line}, default=str), file=lines, flush=True)


if __name__ == "__main__":
    main()
