"""Print what a script measured, and with --record append it to results.jsonl with machine, date, commit and command."""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from common.results import RESULTS, Row, markdown, problem_of, read_results

CHECKOUT = Path(__file__).parent.parent.parent


def record_options(parser: argparse.ArgumentParser) -> None:
    """The options of every script that measures something."""
    parser.add_argument("--record", action="store_true", help="append the figures to the results; then run render.py")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file that --record appends to")


def publish(
    options: argparse.Namespace,
    kind: str,
    title: str,
    tables: list[dict[str, Any]],
    headlines: Sequence[Row] = (),
    note: str | None = None,
    command: str | None = None,
) -> None:
    """Print the tables of a measurement, and append it to the results where --record was given.

    Args:
        options: with `record` and `results`; a `device` other than cpu is named in the machine; with `toy` the figures
            are marked as such, which the project's own file of results does not accept.
        kind: what was measured, in lower case with hyphens.
        title: the heading of its section.
        tables: see `results.table`.
        headlines: see `results.headline`.
        note: one sentence, where the figures cannot be read rightly without it.
        command: what was run, where it was not this script.
    """
    print("\n\n".join(markdown(table) for table in tables))
    if not options.record:
        return
    if getattr(options, "toy", False):
        if options.results.resolve() == RESULTS.resolve():
            sys.exit("Not recorded: --toy is no measurement. Leave out --toy, or give another file by --results.")
        kind = f"{kind}-toy"
    machine = machine_of(getattr(options, "device", "cpu"))
    today = date.today().isoformat()
    record = {
        "id": unused_id(options.results, slug(f"{kind} {machine['instructions']} {today}")),
        "kind": kind,
        "title": title,
        "date": today,
        "commit": commit(),
        "machine": machine,
        "command": command or own_command(sys.argv),
        "note": note,
        "headlines": list(headlines),
        "tables": tables,
    }
    problem = problem_of(record)
    assert problem is None, problem
    with open(options.results, "a", encoding="utf-8") as results:
        results.write(json.dumps(record, ensure_ascii=False) + "\n")
    print(f"Recorded as {record['id']} in {options.results}.", file=sys.stderr)


def machine_of(device: str) -> dict[str, Any]:
    """What matters of this machine: no names, but what a figure depends on."""
    native = any(
        # torch has no public question for this; a missing one means "not known".
        getattr(torch.cpu, test, lambda: False)()
        for test in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability() + " with bfloat16" * native,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def commit() -> str | None:
    """The commit that is checked out, marked where scripts or package differ from it; None outside a git checkout."""
    head = git("rev-parse", "--short", "HEAD")
    changes = git("status", "--porcelain", "--", "volseg", "benchmarks/*.py")
    return f"{head} with changes" if head and changes else head


def git(*arguments: str) -> str | None:
    """What git prints in this checkout; None where it fails or is missing."""
    try:
        return subprocess.run(
            ["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def own_command(arguments: Sequence[str]) -> str:
    """The command line as anyone may repeat it: without --record, and with the paths of this machine renamed."""
    script, *given = arguments
    kept = []
    for before, argument in zip([script, *given], given, strict=False):
        if argument not in ("--record", "--results") and before != "--results" and "--results=" not in argument:
            kept.append(renamed(argument))
    folder, path = CHECKOUT / "benchmarks", Path(script).resolve()
    name = path.relative_to(folder) if path.is_relative_to(folder) else path.name
    return " ".join(["python", f"benchmarks/{name}", *kept])


def renamed(argument: str) -> str:
    """A path below VOLSEG_DATA relative to it, the end of another absolute path; anything else as it is."""
    path, data = Path(argument), os.environ.get("VOLSEG_DATA")
    if not path.is_absolute():
        return argument
    if data and path.is_relative_to(data):
        return str(Path("$VOLSEG_DATA") / path.relative_to(data))
    return f"/path/to/{path.name}"


def slug(text: str) -> str:
    """Lower case, with hyphens for all that is neither a letter nor a digit."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")


def unused_id(results: Path, wanted: str) -> str:
    """`wanted`, numbered where the file has it."""
    taken = {record["id"] for record in read_results(results)} if results.exists() else set()
    return next(
        one for one in (wanted, *(f"{wanted}-{number}" for number in range(2, len(taken) + 3))) if one not in taken
    )
