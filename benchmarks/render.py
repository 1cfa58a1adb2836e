"""Write RESULTS.md from results.jsonl: an overview, then a section per kind of measurement.

    python benchmarks/render.py [--results results.jsonl] [--output RESULTS.md]

Shown is the newest measurement of each kind on each sort of machine (device and instruction set); older ones stay in
results.jsonl. Needs Python only.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.results import RESULTS, Row, computed, figure, markdown, read_results, row_named, table

INTRODUCTION = """# Measured figures

<!-- Written by benchmarks/render.py from benchmarks/results.jsonl: do not edit. -->

Each figure was printed by the command next to it; each ratio is computed from the two figures it compares. Shown is the
newest measurement of each kind on each sort of machine; older ones are in `results.jsonl`. Dice is that of the written
label images, the mean over cases and then over labels, unless a table says otherwise.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--output", type=Path, default=RESULTS.with_name("RESULTS.md"))
    options = parser.parse_args()
    options.output.write_text(document(read_results(options.results)), encoding="utf-8")


def document(records: Sequence[dict[str, Any]]) -> str:
    """The whole of RESULTS.md."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for record in newest(records):
        kinds.setdefault(record["kind"], []).append(record)
    lines = [line for found in kinds.values() for record in found for line in overview(record)]
    sections = [f"## {found[-1]['title']}\n\n" + "\n".join(map(measurement, found)) for found in kinds.values()]
    return "\n".join([INTRODUCTION, "## Overview\n", markdown(table(lines)), "", *sections])


def newest(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each kind, device and instruction set the latest; of one day the last line. Kinds keep the file's order."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for record in records:
        key = record["kind"], record["machine"]["device"], record["machine"]["instructions"]
        if key not in found or record["date"] >= found[key]["date"]:
            found[key] = record
    return list(found.values())


def overview(record: dict[str, Any]) -> list[Row]:
    """The lines of a measurement in the overview."""
    return [
        {
            "what": one["what"],
            "figure": one["column"],
            **sides(one, record["tables"][0]),
            "machine": machine(record),
            "date": record["date"],
            "command": f"`{record['command']}`",
        }
        for one in record["headlines"]
    ]


def sides(headline: Row, first: dict[str, Any]) -> Row:
    """Ours, theirs and the ratio of a headline; theirs is empty where nothing is compared."""
    rows, column = first["rows"], headline["column"]
    own = row_named(rows, headline["row"])
    found = {"volseg": figure(own, column, rows), "compared with": "", "ratio": ""}
    for ratio in first["ratios"]:
        if ratio["column"] == column and "baseline" in ratio:
            against = headline["against"] or ratio["baseline"]
            found["compared with"] = f"{figure(row_named(rows, against), column, rows)} ({against})"
            found["ratio"] = f"{computed({**ratio, 'baseline': against}, own, rows)} {ratio['name']}"
    return found


def measurement(record: dict[str, Any]) -> str:
    """One measurement of a section: machine, date, commit and command, the note, the tables."""
    versions = [f"{name} {record['machine'][name]}" for name in ("python", "torch") if record["machine"][name]]
    commit = [f"commit {record['commit']}"] if record["commit"] else []
    head = "; ".join([machine(record), ", ".join(versions), ", ".join([record["date"], *commit])])
    note = [f"{record['note']}\n"] if record["note"] else []
    tables = [f"{markdown(one)}\n" for one in record["tables"]]
    return "\n".join([f"**{head}**\n", f"`{record['command']}`\n", *note, *tables])


def machine(record: dict[str, Any]) -> str:
    """What a figure was measured on."""
    found = record["machine"]
    device = [] if found["device"] == "cpu" else [found["device"]]
    return ", ".join([*device, f"{found['threads']} thread{'s' * (found['threads'] != 1)}", found["instructions"]])


if __name__ == "__main__":
    main()
