"""An audit as files: JSON, CSV, and one HTML page with the pictures of the most suspicious cases."""

import base64
import csv
import io
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from volseg.files import require_writable, whole_files, write_json, write_text
from volseg.report.page import html_page, html_table
from volseg.text import counted, printable

# The last to appear first: a reader of it finds the others of the same audit.
FILES = ("audit.json", "audit.csv", "audit.html")
# The folder of the pictures, below that of the files.
PICTURES = "pictures"
# Cases whose pictures are in the page itself; those of the others are in the folder.
SHOWN = 30
# A score that few cases exceed in a dataset without errors.
USUAL = 3
NOTE = (
    "Cases whose labels are probably wrong, the most suspicious first. Each was segmented by a model that was not "
    "trained on it. The score says how unusual the confident contradictions of the model are: by how many robust "
    "standard deviations they exceed what is usual for the same label in the other cases. In a dataset without errors "
    f"few exceed {USUAL}. A high score is a question, not a verdict: look at the picture, then at the scan."
)
COLUMNS = (
    "rank", "case", "score", "label", "measure", "reference", "prediction", "volume_ml", "i", "j", "k", "x_mm", "y_mm",
    "z_mm", "run", "picture",
)  # fmt: skip


def check_audit_folder(folder: Path) -> None:
    """Reject a folder that the files of an audit cannot be written to."""
    require_writable([*(folder / name for name in FILES), folder / PICTURES / "case.png"])


def write_audit(document: Mapping[str, Any], folder: Path) -> None:
    """Write audit.json, audit.csv and audit.html; all of them appear, or none.

    Args:
        document: see `volseg.audit`.
        folder: exists, with the pictures that the document names.
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for case in document["cases"]:
        writer.writerow(_row(case))
    with whole_files(folder, FILES[0]) as made:
        write_text(made / FILES[1], table.getvalue())
        write_text(made / FILES[2], audit_page(document, folder))
        write_json(made / FILES[0], document)


def _row(case: Mapping[str, Any]) -> list[Any]:
    """A line of the CSV: the case with its first finding."""
    first = case["findings"][0] if case["findings"] else {}
    place = [*(first.get("voxel") or [None] * 3), *(first.get("position_mm") or [None] * 3)]
    return [
        case["rank"], case["name"], case["score"], case["label"], case["measure"], first.get("reference"),
        first.get("prediction"), first.get("volume_ml"), *place, case["run"], case["picture"],
    ]  # fmt: skip


def audit_page(document: Mapping[str, Any], folder: Path) -> str:
    """The page of an audit, whose pictures lie in `folder`."""
    cases = document["cases"]
    about = f"{document['dataset']}: {counted(len(cases), 'case')} of {counted(len(document['runs']), 'run')}."
    parts = [f"<p>{escape(printable(about))} {NOTE}</p>"]
    parts += [f"<p>{escape(printable(warning))}.</p>" for warning in document["warnings"]]
    if document["failed"]:
        failed = [(one["name"], one["error"]) for one in document["failed"]]
        parts += ["<h2>Not compared</h2>", html_table(("case", "why"), failed)]
    parts.append("<h2>Most suspicious</h2>")
    parts += [_section(case, folder) for case in cases[:SHOWN]]
    rows = [
        (case["rank"], case["name"], case["score"], case["label"] or "all labels", case["measure"],
         *_in_words(case["findings"][:1]), case["picture"])
        for case in cases
    ]  # fmt: skip
    columns = ("rank", "case", "score", "label", "measure", "largest finding", "picture")
    parts += ["<h2>All cases</h2>", html_table(columns, rows)]
    return html_page("Audit of labels", parts)


def _in_words(findings: list[Any]) -> list[str | None]:
    return [finding_in_words(one) for one in findings] or [None]


def finding_in_words(finding: Mapping[str, Any]) -> str:
    """What the reference says, what the model says, how much and where."""
    size = f"{finding['voxels']} voxels" if finding["volume_ml"] is None else f"{finding['volume_ml']:.3g} mL"
    i, j, k = finding["voxel"]
    return f"reference {finding['reference']}, model {finding['prediction']}: {size} at voxel {i}, {j}, {k}"


def _section(case: Mapping[str, Any], folder: Path) -> str:
    """One case: why it stands here, its picture, and its findings."""
    why = case["measure"] if case["label"] is None else f"{case['measure']} of {case['label']}"
    title = f"{case['rank']}. {case['name']}: score {case['score']:.1f} ({why})"
    parts = [f"<h3>{escape(printable(title))}</h3>"]
    if case["picture"]:
        data = base64.b64encode((folder / case["picture"]).read_bytes()).decode()
        parts.append(f"<img alt='{escape(printable(case['name']))}' src='data:image/png;base64,{data}'>")
    rows = [
        (one["reference"], one["prediction"], one["volume_ml"], one["voxels"],
         ", ".join(map(str, one["voxel"])), _position(one), one["confidence"])
        for one in case["findings"]
    ]  # fmt: skip
    columns = ("reference", "model", "mL", "voxels", "at voxel", "at mm (R, A, S)", "confidence")
    if rows:
        parts.append(html_table(columns, rows))
    else:
        parts.append("<p>No voxel is contradicted with confidence.</p>")
    return "\n".join(parts)


def _position(finding: Mapping[str, Any]) -> str | None:
    place = finding["position_mm"]
    return None if place is None else ", ".join(f"{value:.1f}" for value in place)
