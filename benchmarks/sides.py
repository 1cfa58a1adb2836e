"""What the comparisons share: each side of one runs in processes of its own, in turn, and medians are compared."""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "RESULTS.md"


def report_side(work: Callable[[], object], repeats: int) -> None:
    """Run `work` once to warm up and `repeats` times for the record; print seconds and peak memory as JSON."""
    work()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cpu = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu.ru_utime + cpu.ru_stime, "peak_gib": peak_gib}))


def run_side(arguments: list[str]) -> dict[str, float]:
    """One side in a process of its own: median seconds, peak GiB, CPU seconds of the whole process."""
    out = subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(out.splitlines()[-1])
    return {**found, "seconds": statistics.median(found["seconds"])}


def as_table(rows: list[dict[str, object]]) -> str:
    """Rows as a Markdown table."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([str(row[column]) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def publish(title: str, command: str, table: str, append: bool) -> None:
    """Print a table, and add it to RESULTS.md if asked to, with the command and the machine."""
    print(table)
    if append:
        machine = (
            f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
        )
        with open(RESULTS, "a", encoding="utf-8") as results:
            results.write(f"\n### {title} ({date.today()})\n\n`{command}`, {machine}.\n\n{table}\n")
