"""The scans at a path: a file, a folder of one DICOM series, or a folder of scans and series.

Scans are found by file names, and by a file's first bytes if its name does not tell whether it is DICOM.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from volseg.data.io.choice import Choice
from volseg.data.io.formats import DICOM_SUFFIXES, SUFFIXES, begins_as_dicom, image_suffix, is_dicom, stem_of
from volseg.errors import InputError
from volseg.files import folders_below


class Found(NamedTuple):
    """A scan at a path, and the name of its result."""

    path: Path
    choice: Choice
    name: str


def scans_at(path: Path, choice: Choice) -> list[Found]:
    """The scan at `path`, or the scans in that folder."""
    whole = [Found(path, choice, name_of(path))]
    if not path.exists():
        raise InputError(f"{path} does not exist. Give a scan or a folder of scans.")
    if path.is_file():
        if _is_scan_file(path) or is_dicom(path):
            return whole
        raise InputError(
            f"{path} has no supported image format. Supported: {', '.join(SUFFIXES)}, .zip of a DICOM series, .dcm; "
            "for a DICOM series give its folder."
        )
    if not path.is_dir():
        raise InputError(f"{path} is neither a file nor a folder. Give a scan or a folder of scans.")
    folders = _dicom_folders(path)
    if choice.series is not None and folders:
        return whole
    scans = [Found(entry, choice, name_of(entry)) for entry in _visible(path) if _is_scan_file(entry)]
    loose = folders.get(path, [])
    if scans and len(loose) > 1:
        raise InputError(
            f"{path} contains {len(loose)} DICOM files (the first is {loose[0].name}) next to other scans (the first "
            f"is {scans[0].path.name}). Move the DICOM files to a separate folder, or give each scan by its path."
        )
    if len(loose) == 1 and (scans or len(folders) > 1):
        scans.append(Found(loose[0], choice, name_of(loose[0])))
        del folders[path]
    if not scans and not folders:
        raise InputError(f"{path} holds no scan. Supported: {', '.join(SUFFIXES)}, .zip or folder of a DICOM series.")
    return scans + (whole if set(folders) == {path} else _series_in(path, folders, choice) if folders else [])


def _dicom_folders(path: Path) -> dict[Path, list[Path]]:
    """The DICOM files of each folder at and below `path` that has some, without hidden ones."""
    found = {}
    for folder, names in folders_below(path):
        if any(part.startswith(".") for part in folder.relative_to(path).parts):
            continue
        entries = [folder / name for name in sorted(names) if not name.startswith(".") and name.upper() != "DICOMDIR"]
        if files := [entry for entry in entries if _may_be_dicom(entry)]:
            found[folder] = files
    return found


def _series_in(path: Path, folders: Mapping[Path, Sequence[Path]], choice: Choice) -> list[Found]:
    """The scans among folders of DICOM files: a folder each, but a series that is spread over several is one scan.

    Raises:
        InputError: files without SeriesInstanceUID lie next to or above those of other series.
    """
    from volseg.data.io.dicom.reader import series_uids  # noqa: PLC0415 - pydicom is loaded only where it is needed

    stated = {folder: series_uids(files) for folder, files in folders.items()}
    # Folders of reports or segmentations alone are no scans.
    uids = {folder: own for folder, own in stated.items() if own is not None} or dict.fromkeys(stated, frozenset())
    if len(set().union(*uids.values())) == 1 and all(own and "" not in own for own in uids.values()):
        return [Found(path, choice, name_of(path))]
    found: list[Found] = []
    for folder, own in uids.items():
        others = {uid for other, theirs in uids.items() if other != folder for uid in theirs} - {""}
        below = any(folder in other.parents for other in uids)
        if not below and not own & others:
            found.append(Found(folder, choice, name_of(folder)))
        elif "" in own:
            raise InputError(
                f"{folder} contains DICOM files without SeriesInstanceUID next to those of other series, so they "
                "cannot be told apart; move each series to a separate folder."
            )
        else:
            found += [Found(path, replace(choice, series=uid), name_of(folder)) for uid in sorted(own)]
    # A series in several folders is found in each; it has the name of the first.
    first = {(scan.path, scan.choice): scan for scan in reversed(found)}
    return _distinct_names(list(first.values()), path)


def _distinct_names(scans: list[Found], root: Path) -> list[Found]:
    """Scans whose names differ: those with one name get that of the folders around them, or a number."""
    counts = Counter(scan.name for scan in scans)
    named: list[Found] = []
    for scan in sorted(scans, key=lambda one: str(one.path)):
        name = scan.name
        if counts[name] > 1 and scan.path != root:
            name = "_".join(scan.path.relative_to(root).parts)
        elif counts[name] > 1:
            name = f"{name}_{sum(other.name.startswith(f'{name}_') for other in named) + 1}"
        named.append(scan._replace(name=name))
    return named


def _is_scan_file(path: Path) -> bool:
    """Whether this is an image or zip file by its name."""
    return path.is_file() and (image_suffix(path) is not None or path.suffix.lower() == ".zip")


def _may_be_dicom(path: Path) -> bool:
    """Whether this is a .dcm or .ima file, or begins like DICOM and is not another scan by its name."""
    if not path.is_file() or _is_scan_file(path):
        return False
    suffix = path.suffix.lower()
    if suffix in DICOM_SUFFIXES:
        return True
    with open(path, "rb") as stream:
        start = stream.read(132)
    # Without the magic of DICOM, a file is taken for a slice only if it has no suffix, or is named by a UID.
    return start[128:] == b"DICM" or ((not suffix or suffix[1:].isdecimal()) and begins_as_dicom(start))


def _visible(folder: Path) -> list[Path]:
    """The entries of a folder in sorted order, without hidden ones."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def name_of(scan: Path) -> str:
    """The name of a scan without the suffix of its format."""
    return stem_of(absolute(scan))


def absolute(path: Path) -> Path:
    """The absolute path without '..', links kept, so that '.' has a name and a linked scan keeps its own."""
    return Path(os.path.abspath(path))
