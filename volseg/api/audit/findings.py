"""What an audit says of a case: its measures and findings as a document, and its picture."""

from pathlib import Path
from typing import Any

import numpy as np

from volseg.api.audit.case import Examined, again
from volseg.auditing.measures import Finding, is_in
from volseg.auditing.question import BACKGROUND
from volseg.auditing.ranking import Score
from volseg.data.grid.geometry import volume_of
from volseg.report.audit_page import finding_in_words
from volseg.report.audit_picture import Questioned, save_audit_picture


def described(examined: Examined, score: Score) -> dict[str, Any]:
    """The entry of a case in the document, see `volseg.audit`."""
    measures, is_sized = examined.audited.measures, examined.grid.is_sized
    voxel_ml = examined.audited.voxel_ml if is_sized else None
    offset = examined.audited.offset_mm
    return {
        "name": examined.case.name,
        "run": examined.run.folder.resolve().name,
        "score": round(score.value, 3),
        "label": score.label,
        "measure": score.measure,
        "labels": {
            name: {
                "score": round(score.by_label[name], 3),
                **{
                    f"{key}_ml": None if voxel_ml is None else volume_of(getattr(one, key), voxel_ml)
                    for key in ("reference", "prediction", "disagreement", "largest", "gap")
                },
            }
            for name, one in measures.labels.items()
        },
        "offset_mm": [round(value, 3) for value in offset] if offset and is_sized else None,
        "findings": [_document(one, examined) for one in ordered(examined, score)],
    }


def ordered(examined: Examined, score: Score) -> list[Finding]:
    """The findings of a case, first the largest of the label that stands out."""
    measures = examined.audited.measures
    first = measures.by_label.get(score.label) if score.label else None
    findings = [one for one in measures.findings if one != first]
    return [first, *findings][: max(len(measures.findings), 1)] if first else findings


def _document(finding: Finding, examined: Examined) -> dict[str, Any]:
    is_sized = examined.grid.is_sized
    affine = examined.grid.geometry.affine
    position = affine[:3, :3] @ np.array(finding.place) + affine[:3, 3]
    return {
        "reference": examined.question.name(finding.stated),
        "prediction": examined.question.name(finding.found),
        "voxels": finding.voxels,
        "volume_ml": volume_of(finding.voxels, examined.audited.voxel_ml) if is_sized else None,
        "voxel": list(finding.place),
        "position_mm": [round(float(value), 3) for value in position] if is_sized else None,
        "confidence": round(finding.weight / finding.voxels, 3),
    }


def save_picture(examined: Examined, score: Score, rank: int, path: Path) -> None:
    """Draw the first finding of a case in the slice through its place that shows most of it.

    Raises:
        InputError: the scan or the reference can no longer be read.
        ResourceError: the file could not be written.
    """
    scan, contradiction = again(examined)
    finding = ordered(examined, score)[0]
    slices = [is_in(finding, contradiction, axis) for axis in range(3)]
    axis = max((2, 1, 0), key=lambda one: int(np.count_nonzero(slices[one])))
    question = examined.question
    values = {label.name: label.value for label in question.labels} | {BACKGROUND: 0}
    # Of overlapping regions, a voxel has the colour of the last one it belongs to.
    painted = np.array([values[question.name(code)] for code in range(len(question.values))], np.uint16)
    questioned = Questioned(
        image=scan.channels[0],
        reference=painted[contradiction.stated],
        prediction=painted[contradiction.found],
        finding=slices[axis],
        axis=axis,
        place=finding.place,
        geometry=scan.geometry,
        shown=question.labels,
    )
    title = f"{rank}. {examined.case.name}: score {score.value:.1f}"
    note = f"{finding_in_words(_document(finding, examined))}. Radiological view: patient right is on the left."
    save_audit_picture(questioned, title, note, path)
