"""The format of results.jsonl: one measurement a line, ratios computed from both of their sides, Markdown tables.

A measurement is what one command printed once:

    id         unique; kind, instruction set and date
    kind       what was measured; a newer line of the same kind and the same sort of machine supersedes an older one
    title      the heading of the kind's section
    date       of the measurement, YYYY-MM-DD
    commit     of volseg when it was measured (for figures older than this file: the commit that published them)
    machine    device, threads, instructions (AVX2, AVX512, ...), python, torch; null where it was not noted
    command    what was run
    note       one sentence that is needed to read the figures rightly, or null
    headlines  figures for the overview: what, column and row of the first table, against (a row), or null for that of
               the ratio
    tables     caption, rows and ratios; a row is a mapping from column to number or text, its first column names it

Rows hold what was measured, never what can be computed from it. A ratio names an operation, the column of its own side,
and its other side: `baseline`, a row of the same table, or `over`, a column of the same row.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "results.jsonl"
FIELDS = ("id", "kind", "title", "date", "commit", "machine", "command", "note", "headlines", "tables")
MACHINE = ("device", "threads", "instructions", "python", "torch")
GROUPED_FROM = 10_000
SIGNIFICANT = 4
# Columns whose figures have no fewer decimals, by a word of their name.
FEWEST_DECIMALS = {"Dice": 4, "GiB": 2}

Row = dict[str, Any]

# Of this row's own value, that of its other side, and the decimals of the column.
OPERATIONS: dict[str, Callable[[float, float, int], str]] = {
    "times as fast": lambda own, other, _: f"{other / own:.2f}",
    "times the memory": lambda own, other, _: f"{own / other:.2f}",
    "times the least": lambda own, other, _: f"{own / other:.2f}",
    "times smaller": lambda own, other, _: f"{other / own:.2f}",
    "fraction of peak": lambda own, other, _: f"{own / other:.0%}",
    "fraction equal": lambda own, other, _: f"{1 - own / other:.4%}",
    "difference": lambda own, other, decimals: f"{own - other:+.{decimals}f}",
}


def read_results(path: Path) -> list[dict[str, Any]]:
    """All measurements of a file, in its order.

    Raises:
        ValueError: a line that is not a measurement, with its number and the reason.
    """
    found: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        record = json.loads(line)
        problem = problem_of(record) or ("its id is taken" if record["id"] in {one["id"] for one in found} else None)
        if problem:
            raise ValueError(f"{path.name}, line {number}: {problem}")
        found.append(record)
    return found


def problem_of(record: dict[str, Any]) -> str | None:
    """What keeps a record from being a measurement, or None."""
    if tuple(record) != FIELDS or tuple(record["machine"]) != MACHINE:
        return f"expected the fields {', '.join(FIELDS)}, and of the machine {', '.join(MACHINE)}"
    if not record["tables"] or not all(table["rows"] for table in record["tables"]):
        return "a table without rows"
    for table in record["tables"]:
        for ratio in table["ratios"]:
            if not any(sides_of(ratio, row, table["rows"]) for row in table["rows"]):
                return f"no row has both sides of the ratio {ratio['name']!r} of {ratio['column']!r}"
    first = record["tables"][0]
    for headline in record["headlines"]:
        rows = [row for row in (headline["row"], headline["against"]) if row is not None]
        if not all(number_in(row_named(first["rows"], row), headline["column"]) is not None for row in rows):
            return f"no figure {headline['column']!r} for the headline {headline['what']!r}"
    return None


def table(rows: Iterable[Row], ratios: Iterable[Row] = (), caption: str | None = None) -> dict[str, Any]:
    """One table of a measurement."""
    return {"caption": caption, "rows": list(rows), "ratios": list(ratios)}


def ratio(name: str, column: str, *, baseline: str | None = None, over: str | None = None) -> Row:
    """A ratio of a table: one of OPERATIONS, with the row `baseline` or the column `over` as its other side."""
    return {"name": name, "column": column} | ({"over": over} if baseline is None else {"baseline": baseline})


def headline(what: str, row: str | float, column: str, against: str | None = None) -> Row:
    """A figure for the overview."""
    return {"what": what, "row": row, "column": column, "against": against}


def rounded(value: float) -> float:
    """A measured figure to four significant digits, more than repeated measurements agree to."""
    return float(f"{value:.{SIGNIFICANT}g}")


def sides_of(ratio: Row, row: Row, rows: Sequence[Row]) -> tuple[float, float] | None:
    """The value of a row and that of its other side; None where either is missing."""
    own = number_in(row, ratio["column"])
    if "over" in ratio:
        other = number_in(row, ratio["over"])
    else:
        other = number_in(row_named(rows, ratio["baseline"]), ratio["column"])
    return None if own is None or other is None else (own, other)


def row_named(rows: Sequence[Row], name: object) -> Row:
    """The row whose first column holds `name`; empty where there is none."""
    return next((row for row in rows if next(iter(row.values())) == name), {})


def number_in(row: Row, column: str) -> float | None:
    """The figure in a column; None where there is none."""
    value = row.get(column)
    return value if isinstance(value, int | float) else None


def markdown(table: dict[str, Any]) -> str:
    """A table with its ratios in the last columns; as one line where it is a single row with a caption."""
    rows = table["rows"]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if table["caption"] and len(rows) == 1 and not table["ratios"]:
        return f"{table['caption']}: {'; '.join(f'{column} = {figure(rows[0], column, rows)}' for column in columns)}."
    names = [ratio["name"] for ratio in table["ratios"]]
    heads = [
        f"{ratio['name']}, {ratio['column']}" if names.count(ratio["name"]) > 1 else ratio["name"]
        for ratio in table["ratios"]
    ]
    lines = [[*columns, *heads], ["---"] * (len(columns) + len(heads))]
    for row in rows:
        figures = [figure(row, column, rows) for column in columns]
        lines.append([*figures, *(computed(one, row, rows) for one in table["ratios"])])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table['caption']}:\n\n{text}" if table["caption"] else text


def computed(ratio: Row, row: Row, rows: Sequence[Row]) -> str:
    """A ratio as text; empty where a side is missing."""
    sides = sides_of(ratio, row, rows)
    return "" if sides is None else OPERATIONS[ratio["name"]](*sides, decimals(rows, ratio["column"]))


def figure(row: Row, column: str, rows: Sequence[Row]) -> str:
    """A cell as text: figures of a column with the same decimals, but no digits beyond those that were measured."""
    value = row.get(column)
    if isinstance(value, float):
        places = decimals(rows, column)
        if "Dice" not in column:
            whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
            places = min(places, max(decimals([row], column), SIGNIFICANT - whole))
        return f"{value:.{places}f}"
    if isinstance(value, int) and value >= GROUPED_FROM:
        return f"{value:,}"
    return "" if value is None else str(value)


def decimals(rows: Sequence[Row], column: str) -> int:
    """The most decimals that a figure of a column was noted with; whole numbers have none."""
    fewest = max((places for word, places in FEWEST_DECIMALS.items() if word in column), default=0)
    figures = [row.get(column) for row in rows]
    return max([fewest, *(len(repr(one).partition(".")[2]) for one in figures if isinstance(one, float))])
