"""What dicom3tools say of files, and which of their lines are allowed, with the reason."""

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.dicom.proof.other_software import program


class Allowed(NamedTuple):
    """A line that is allowed.

    Args:
        pattern: regular expression that matches the whole line.
        kinds: the objects it is allowed for: outputs as in `save(to=...)`, or "study" for dcentvfy.
        reason: why the file is right all the same.
    """

    pattern: str
    kinds: tuple[str, ...]
    reason: str


ALLOWED = (
    Allowed(
        r"Warning - .*CodingSchemeDesignator\(0008,0102\).* - Unrecognized defined term = <99VOLSEG>",
        ("dicom-seg", "dicom-seg:empty-frames", "dicom-sr", "dicom-sr:empty-frames", "dicom-sr:labelmap"),
        "PS3.3 8.2 gives private coding schemes names that begin with 99; objects with one say whose it is.",
    ),
    Allowed(
        r"Error - .*ReferencedSegmentNumber\(0062,000b\)> - Shall not be present for Referenced SOP Class that is not "
        "segmentation",
        ("dicom-sr:labelmap",),
        "Label Map Segmentation Storage is one too, which dicom3tools of 2022 do not know.",
    ),
    Allowed(
        r"Warning - </Laterality\(0020,0060\)> - is only permitted to be empty when actually unknown; .*",
        ("dicom-sc",),
        "It is unknown where the source states none; dciodvfy calls it an error to leave it out.",
    ),
    Allowed(
        r"Warning - Different information entities for attribute - Element=<AccessionNumber> IE <(Series|Study)> "
        r"versus <(Series|Study)> for file <.*> versus <.*>",
        ("study",),
        "dcentvfy takes it for a part of the study in reports and of the series in other objects; PS3.3 C.7.2.1 has it "
        "in the study of both.",
    ),
)
# dicom3tools of 2022 do not know these; what they say is shown, and decides nothing.
UNKNOWN_TO_TOOLS = ("dicom-seg:labelmap",)


def lines_about(file: Path) -> list[str]:
    """What dciodvfy says of a file, without the name of its IOD."""
    done = subprocess.run([program("dciodvfy"), "-new", str(file)], capture_output=True, text=True, timeout=120)
    return _said(done)


def lines_about_study(files: Iterable[Path]) -> list[str]:
    """What dcentvfy says of files of one study: whether their patients, studies, series and frames agree."""
    names = [str(file) for file in files]
    done = subprocess.run([program("dcentvfy"), *names], capture_output=True, text=True, timeout=120)
    return _said(done)


def _said(done) -> list[str]:
    """The lines of a program; a crash, which says nothing, is one too."""
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines()]
    # The name of the IOD, such as CTImage, has no blank and no stop.
    found = [line for line in lines if line and not re.fullmatch(r"\w+", line)]
    return [*found, f"ended by signal {-done.returncode}"] if done.returncode < 0 else found


def unexplained(lines: Iterable[str], kind: str, used: set[Allowed]) -> list[str]:
    """The lines that nothing allows for this kind of object; what is used of the list is added to `used`."""
    left = []
    for line in lines:
        found = [one for one in ALLOWED if kind in one.kinds and re.fullmatch(one.pattern, line)]
        used.update(found)
        if not found:
            left.append(line)
    return left
