"""results.jsonl holds whole measurements, RESULTS.md is made from it, and the scripts append to it."""

import argparse
import importlib
import json
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
RECORDS = [json.loads(line) for line in (BENCHMARKS / "results.jsonl").read_text(encoding="utf-8").splitlines()]
TABLES = [(record["id"], table) for record in RECORDS for table in record["tables"]]
FIELDS = {
    "id": str, "kind": str, "title": str, "date": str, "commit": str | None, "machine": dict, "command": str,
    "note": str | None, "headlines": list, "tables": list,
}  # fmt: skip
MACHINE = {"device": str, "threads": int, "instructions": str, "python": str | None, "torch": str | None}
SCRIPTS = sorted(path for path in BENCHMARKS.glob("*.py") if path.name != "render.py")
SCRIPTS += [BENCHMARKS / "dicom" / name for name in ("node.py", "write.py")]


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("common.results")


@pytest.fixture
def record(results: ModuleType) -> ModuleType:
    return importlib.import_module("common.record")


def test_the_generator_writes_the_file_in_the_checkout(tmp_path: Path):
    written = tmp_path / "RESULTS.md"
    subprocess.run([sys.executable, BENCHMARKS / "render.py", "--output", written], check=True)
    assert written.read_text(encoding="utf-8") == (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8"), (
        "run: python benchmarks/render.py"
    )


@pytest.mark.parametrize("line", RECORDS, ids=lambda line: line["id"])
def test_a_line_has_the_fields(line: dict):
    assert list(line) == list(FIELDS)
    assert all(isinstance(line[name], kind) for name, kind in FIELDS.items())
    assert list(line["machine"]) == list(MACHINE)
    assert all(isinstance(line["machine"][name], kind) for name, kind in MACHINE.items())
    assert date.fromisoformat(line["date"]).year >= 2026
    assert line["commit"] is None or re.fullmatch("[0-9a-f]{7,}( with changes)?", line["commit"])
    assert line["id"].startswith(f"{line['kind']}-")
    assert "toy" not in line["kind"]
    assert line["tables"]


def test_ids_are_unique():
    assert len({line["id"] for line in RECORDS}) == len(RECORDS) > 40


def test_every_ratio_has_both_sides(results: ModuleType):
    found = 0
    for name, table in TABLES:
        for ratio in table["ratios"]:
            assert ratio["name"] in results.OPERATIONS
            other = [row for row in table["rows"] if next(iter(row.values())) != ratio.get("baseline")]
            assert any(results.sides_of(ratio, row, table["rows"]) for row in other), name
            found += len(other)
    assert found > 50


def test_no_ratio_is_typed(results: ModuleType):
    columns = {column for _, table in TABLES for row in table["rows"] for column in row}
    assert not columns & set(results.OPERATIONS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("times as fast", "4.00"), ("times smaller", "4.00"), ("times the memory", "0.25"), ("fraction of peak", "25%"),
     ("fraction equal", "75.0000%"), ("difference", "-4.500")],
)  # fmt: skip
def test_ratios_of_known_sides(results: ModuleType, name: str, expected: str):
    rows = [{"side": "theirs", "x": 6.0}, {"side": "ours", "x": 1.5}]
    assert results.OPERATIONS[name](1.5, 6.0, 3) == expected
    assert results.sides_of(results.ratio(name, "x", baseline="theirs"), rows[1], rows) == (1.5, 6.0)
    assert results.sides_of(results.ratio(name, "x", over="y"), {"side": "ours", "x": 1.5, "y": 6}, rows) == (1.5, 6)


def test_a_table_pads_decimals_and_computes_ratios(results: ModuleType):
    rows = [{"side": "theirs", "seconds": 12.5, "voxels": 12345}, {"side": "ours", "seconds": 2.0}]
    text = results.markdown(
        results.table(rows, [results.ratio("times as fast", "seconds", baseline="theirs")], "Times")
    )
    assert text.splitlines() == [
        "Times:",
        "",
        "| side | seconds | voxels | times as fast |",
        "| --- | --- | --- | --- |",
        "| theirs | 12.5 | 12,345 | 1.00 |",
        "| ours | 2.0 |  | 6.25 |",
    ]
    assert results.markdown(results.table([{"Dice": 0.9, "mL": 3}], caption="All")) == "All: Dice = 0.9000; mL = 3."


def with_ratio(ratio: dict) -> dict:
    """A measurement with one ratio."""
    rows = [{"side": "theirs", "seconds": 2.0}, {"side": "ours", "seconds": 1.0}]
    machine = {"device": "cpu", "threads": 1, "instructions": "AVX2", "python": None, "torch": None}
    texts = dict.fromkeys(("id", "kind", "title", "date", "commit"), "one")
    tables = [{"caption": None, "rows": rows, "ratios": [ratio]}]
    return {**texts, "machine": machine, "command": "run", "note": None, "headlines": [], "tables": tables}


def test_reading_names_the_line_and_the_missing_side(results: ModuleType, tmp_path: Path):
    path = tmp_path / "results.jsonl"
    good = with_ratio(results.ratio("times as fast", "seconds", baseline="theirs"))
    path.write_text(json.dumps(good) + "\n")
    assert results.read_results(path) == [good]
    bad = with_ratio(results.ratio("times as fast", "seconds", baseline="nobody"))
    path.write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n")
    with pytest.raises(ValueError, match="line 2: no row has both sides of the ratio 'times as fast' of 'seconds'"):
        results.read_results(path)
    path.write_text(f"{json.dumps(good)}\n{json.dumps(good)}\n")
    with pytest.raises(ValueError, match="line 2: its id is taken"):
        results.read_results(path)
    path.write_text(json.dumps({**good, "tables": []}))
    with pytest.raises(ValueError, match="line 1: a table without rows"):
        results.read_results(path)


def test_the_newest_measurement_of_a_kind_is_shown_per_machine(results: ModuleType):
    render = importlib.import_module("render")
    good = with_ratio(results.ratio("times as fast", "seconds", baseline="theirs"))
    other = {**good["machine"], "instructions": "AVX512"}
    lines = [
        {**good, "id": name, "date": day, "machine": machine}
        for name, day, machine in (
            ("old", "2026-01-01", good["machine"]),
            ("new", "2026-01-03", good["machine"]),
            ("late", "2026-01-02", good["machine"]),
            ("elsewhere", "2026-01-01", other),
            ("again", "2026-01-01", other),
        )
    ]
    assert [line["id"] for line in render.newest(lines)] == ["new", "again"]
    shown = {**good, "headlines": [results.headline("a step", "ours", "seconds")]}
    assert "| a step | seconds | 1.0 | 2.0 (theirs) | 2.00 times as fast | 1 thread, AVX2 | one | `run` |" in (
        render.document([shown])
    )


def test_publish_appends_a_line_with_machine_commit_and_command(
    record: ModuleType, results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    path = tmp_path / "results.jsonl"
    monkeypatch.setenv("VOLSEG_DATA", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [
        "benchmarks/step.py", str(tmp_path / "Task"), "--python", "/opt/python", "--record", "--results", str(path)
    ])  # fmt: skip
    options = argparse.Namespace(record=True, results=path)
    tables = [results.table([{"side": "ours", "seconds": 1.25}])]
    for _ in range(2):
        record.publish(options, "step", "A step", tables, [results.headline("a step", "ours", "seconds")])
    first, second = results.read_results(path)
    assert first["command"] == "python benchmarks/step.py $VOLSEG_DATA/Task --python /path/to/python"
    assert first["date"] == date.today().isoformat()
    assert first["machine"]["threads"] > 0
    assert first["machine"]["python"].startswith(f"{sys.version_info.major}.")
    assert second["id"] == f"{first['id']}-2"
    assert first["tables"] == tables
    assert "| ours | 1.25 |" in capsys.readouterr().out


def test_without_record_nothing_is_written_and_a_toy_is_refused(
    record: ModuleType, results: ModuleType, tmp_path: Path
):
    path = tmp_path / "results.jsonl"
    tables = [results.table([{"side": "ours", "seconds": 1.25}])]
    record.publish(argparse.Namespace(record=False, results=path), "step", "A step", tables)
    assert not path.exists()
    before = results.RESULTS.read_bytes()
    with pytest.raises(SystemExit, match="--toy is no measurement"):
        record.publish(argparse.Namespace(record=True, toy=True, results=results.RESULTS), "step", "A step", tables)
    assert results.RESULTS.read_bytes() == before


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_can_record(script: Path):
    text = script.read_text(encoding="utf-8")
    assert "record_options(parser)" in text
    assert re.search(r"\bpublish\(", text)
    assert "[--record]" in text
