"""What a DICOM segmentation or structure set says of itself, without its pixels: for `volseg info`."""

from pathlib import Path
from typing import Any

from volseg.data.io.dicom.files import files_of
from volseg.data.io.dicom.values import printable
from volseg.data.io.dicom_labels.objects import KINDS, SEGMENTATION, STRUCTURES, Part
from volseg.data.io.dicom_labels.reader import open_labels
from volseg.data.io.dicom_labels.segmentation import Segmentation
from volseg.data.io.dicom_labels.structures import StructureSet
from volseg.text import counted


def description(path: Path) -> dict[str, Any]:
    """The kind of an object, its labels with numbers, names and codes, and what it refers to.

    Raises:
        InputError: it cannot be read.
    """
    with files_of(path) as names:
        found = open_labels(path, names)
    own = _of_segmentation(found) if isinstance(found, Segmentation) else _of_structures(found)
    return {
        "what": KINDS[SEGMENTATION if isinstance(found, Segmentation) else STRUCTURES],
        "file": str(path),
        **own,
        "frame_of_reference": _listed(found.references.frames),
        "of_series": _listed(found.references.series),
        "of_images": len(found.references.images),
        "warnings": "; ".join(found.warnings) or "none",
    }


def _of_segmentation(found: Segmentation) -> dict[str, Any]:
    frames = {part.number: found.segments.count(part.number) for part in found.parts}
    of_each = found.kind != "LABELMAP"
    return {
        "type": found.kind,
        "frames": len(found.frames),
        "labels": "; ".join(
            _text(part, part.number, counted(frames[part.number], "frame") if of_each else "") for part in found.parts
        ),
    }


def _of_structures(found: StructureSet) -> dict[str, Any]:
    contours = {number: len(some) for number, some in found.contours.items()}
    return {
        "contours": sum(contours.values()),
        "labels": "; ".join(
            _text(part, found.numbers[part.number], counted(contours[part.number], "contour")) for part in found.parts
        ),
    }


def _text(part: Part, number: int, size: str) -> str:
    """A label in words: "1 Anterior (Hippocampus, Anterior, 12 frames)"."""
    meanings = [code.get("meaning", "") for name, code in part.codes.items() if not name.startswith("category")]
    said = ", ".join(one for one in (*meanings, size) if one)
    return f"{number} {part.name}" + (f" ({said})" if said else "")


def _listed(uids: frozenset[str]) -> str | None:
    return ", ".join(map(printable, sorted(uids))) or None
