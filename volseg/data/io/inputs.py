"""The inputs and outputs of `volseg predict INPUT...`: finding the cases, and planning the paths of their results.

Cases are found by file names, and by a file's first bytes if its name does not tell whether it is DICOM.

A scan is an image file, a .zip, a DICOMDIR or a folder of a DICOM series, or a DICOM file. One series that is spread
over several folders is one scan.
"""

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from volseg.data.io.choice import ONLY, Choice
from volseg.data.io.formats import DICOM_SUFFIXES, SUFFIXES, begins_as_dicom, image_suffix, is_dicom, sibling, stem_of
from volseg.errors import InputError, UsageError
from volseg.files import access_to, folders_below, require_writable

logger = logging.getLogger(__name__)

# A scan with a detached header gets its result in the one-file form of the format.
ONE_FILE_SUFFIX = {".nhdr": ".nrrd", ".mhd": ".mha"}
NNUNET_CHANNEL = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class Case:
    """One case to segment.

    Args:
        name: of the result, without suffix.
        paths: one scan per channel in the model's order, or a single one with all channels.
        output_suffix: of the result, for example ".nii.gz".
        choice: which series and volume of the paths.
    """

    name: str
    paths: tuple[Path, ...]
    output_suffix: str
    choice: Choice = ONLY


class _Found(NamedTuple):
    """A scan at a path, and the name of its result."""

    path: Path
    choice: Choice
    name: str


def find_cases(
    inputs: Sequence[Path],
    channels: Sequence[str],
    named_channels: Mapping[str, Path] | None = None,
    choice: Choice = ONLY,
) -> list[Case]:
    """Find the cases to segment among paths.

    Scans of one folder named case_0000, case_0001, ... are the channels of one case, if every given scan of that folder
    belongs to a case with exactly the model's channels; otherwise each scan is a case.

    Args:
        inputs: scans and folders of scans; duplicates count once.
        channels: the model's channel names.
        named_channels: instead of `inputs`, the scan of each channel; the case is named after the first channel's.
        choice: which series and volume of each scan. With a series, a folder is one scan.

    Returns:
        In the order of the inputs; within one folder, sorted by name.

    Raises:
        UsageError: inputs and named channels together, neither, or not exactly the model's channels.
        InputError: a missing or unreadable path, an unknown format, or a folder without scans.
    """
    if named_channels:
        if inputs:
            raise UsageError(
                f"Give either scans or --channel, found both: {inputs[0]} and {', '.join(named_channels)}."
            )
        return [_case_of_named(channels, named_channels, choice)]
    if not inputs:
        raise UsageError("Nothing to segment. Give a scan or a folder of scans.")
    # A scan may be given twice, for example by its path and by its folder.
    given: dict[tuple[Path, Choice], _Found] = {}
    for path in inputs:
        with access_to(path):
            scans = _scans_at(path, choice)
        for scan in scans:
            given.setdefault((_absolute(scan.path), scan.choice), scan)
    folders: dict[Path, list[_Found]] = defaultdict(list)
    for (absolute, _), scan in given.items():
        folders[absolute.parent].append(scan)
    return [case for scans in folders.values() for case in _cases_among(scans, len(channels))]


def by_volume(case: Case, count: int) -> list[Case]:
    """A case of `count` volumes as one case per volume, named <name>_tN from 1; a 3-D scan keeps its name."""
    if count == 1:
        return [case]
    return [
        replace(case, name=f"{case.name}_t{number}", choice=replace(case.choice, volume=number))
        for number in range(1, count + 1)
    ]


def plan_outputs(
    cases: Sequence[Case],
    out: Path,
    overwrite: bool = False,
    skip_existing: bool = False,
    also: Sequence[str] = (),
) -> list[tuple[Case, Path]]:
    """Decide before any computation which cases to segment and where to write each label image.

    Args:
        cases: see `find_cases`.
        out: with one case and a name that ends in an image suffix, the label image; otherwise a folder.
        overwrite: overwrite existing results.
        skip_existing: skip cases whose result exists with all its files.
        also: suffixes of further files of a result, such as ".probabilities.npy".

    Raises:
        UsageError: two cases with one output path; a result that exists, would overwrite a scan, would lie in a DICOM
            series, or cannot be written; or both options.
    """
    if overwrite and skip_existing:
        raise UsageError("--overwrite and --skip-existing contradict each other. Give one of them.")
    outputs = output_paths(cases, out)
    _protect_scans(outputs, [path for case in cases for path in case.paths])
    # A JSON file without a label image is not a result of volseg; it may be a scan's own sidecar.
    sidecars = [sibling(output, ".json") for output in outputs if not os.path.exists(output)]
    taken = [sidecar for sidecar in sidecars if os.path.exists(sidecar)]
    if taken and not overwrite:
        raise UsageError(
            f"The JSON report of a result would overwrite {taken[0]}. Choose another --output, or add --overwrite."
        )
    jobs = list(zip(cases, outputs, strict=True))
    files = [[output, *(sibling(output, suffix) for suffix in also)] for output in outputs]
    present = [[file for file in one if os.path.exists(file)] for one in files]
    if skip_existing:
        # The label image is written last; other files without it come from an interrupted run.
        jobs = [job for job, one, found in zip(jobs, files, present, strict=True) if found != one]
    existing = [found[0] for found in present if found]
    if existing and not overwrite and not skip_existing:
        raise UsageError(
            f"{len(existing)} of {len(outputs)} results exist already, the first is {existing[0]}. "
            "Add --overwrite to overwrite them or --skip-existing to keep them."
        )
    others = (".json", *also)
    require_writable(file for _, label in jobs for file in (label, *(sibling(label, suffix) for suffix in others)))
    return jobs


def output_paths(cases: Sequence[Case], out: Path) -> list[Path]:
    """The label image of each case, see `plan_outputs`.

    Raises:
        UsageError: two cases with one name, even with different suffixes, because both would write <name>.json; or
            several cases if `out` is one file.
    """
    suffix = image_suffix(out)
    if suffix and not os.path.isdir(out):
        if suffix in ONE_FILE_SUFFIX:
            raise UsageError(f"--output {out} would be two files. Use {ONE_FILE_SUFFIX[suffix]} instead of {suffix}.")
        if len(cases) == 1:
            return [out]
        raise UsageError(f"--output {out} names one file, but there are {len(cases)} cases. Give a folder.")
    if os.path.exists(out) and not os.path.isdir(out):
        raise UsageError(
            f"--output {out} is a file without an image suffix. Give a folder, or one of {', '.join(SUFFIXES)}."
        )
    first: dict[str, Case] = {}
    for case in cases:
        other = first.setdefault(case.name, case)
        if other is not case:
            raise UsageError(
                f"{other.paths[0]} and {case.paths[0]} would be written to the same output '{case.name}'. "
                "Segment them separately with different --output folders."
            )
    return [out / f"{case.name}{case.output_suffix}" for case in cases]


def _protect_scans(outputs: Sequence[Path], scans: Sequence[Path]) -> None:
    """Reject results that would overwrite a scan, or lie in a DICOM series, which would then be none any more."""
    real_scans = {_real(scan) for scan in scans}
    series = {scan for scan in real_scans if scan.is_dir()}
    for output in outputs:
        if _real(output) in real_scans:
            raise UsageError(f"The result {output} would overwrite the scan of that name. Choose another --output.")
        if (inside := _real(output).parent) in series:
            raise UsageError(
                f"The result {output} would lie in the DICOM series {inside}. Choose an --output outside that folder."
            )


def _case_of_named(channels: Sequence[str], named: Mapping[str, Path], choice: Choice) -> Case:
    """The case whose channels were given by name."""
    if set(named) != set(channels):
        raise UsageError(
            f"The model's channels are {', '.join(channels)}, found --channel {', '.join(named)}. Give each once."
        )
    paths = tuple(named[channel] for channel in channels)
    for channel, path in zip(channels, paths, strict=True):
        with access_to(path):
            scans = _scans_at(path, choice)
        if [scan.path for scan in scans] != [path]:
            raise UsageError(f"--channel {channel}={path} is a folder of scans. Give one scan.")
    return Case(_name(paths[0]), paths, _output_suffix(paths[0]), choice)


def _cases_among(scans: list[_Found], channels: int) -> list[Case]:
    """The cases of one folder: by nnU-Net's file names if all scans have them, otherwise one for each scan."""
    scans = sorted(scans, key=lambda scan: scan.name)
    sets: dict[str, dict[int, _Found]] = defaultdict(dict)
    for scan in scans:
        if match := NNUNET_CHANNEL.fullmatch(scan.name):
            sets[match[1]][int(match[2])] = scan
    full = all(sorted(found) == list(range(channels)) for found in sets.values())
    if full and sum(len(found) for found in sets.values()) == len(scans):
        return [_case(name, [found[at] for at in range(channels)]) for name, found in sets.items()]
    if sets and channels > 1:
        logger.warning(
            "Not every case in %s has exactly the files _0000 to _%04d, so each file is treated as a separate case.",
            scans[0].path.parent,
            channels - 1,
        )
    return [_case(scan.name, [scan]) for scan in scans]


def _case(name: str, scans: Sequence[_Found]) -> Case:
    return Case(name, tuple(scan.path for scan in scans), _output_suffix(scans[0].path), scans[0].choice)


def _scans_at(path: Path, choice: Choice) -> list[_Found]:
    """The scan at `path`, or the scans in that folder."""
    whole = [_Found(path, choice, _name(path))]
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
    scans = [_Found(entry, choice, _name(entry)) for entry in _visible(path) if _is_scan_file(entry)]
    loose = folders.get(path, [])
    if scans and len(loose) > 1:
        raise InputError(
            f"{path} contains {len(loose)} DICOM files (the first is {loose[0].name}) next to other scans (the first "
            f"is {scans[0].path.name}). Move the DICOM files to a separate folder, or give each scan by its path."
        )
    if len(loose) == 1 and (scans or len(folders) > 1):
        scans.append(_Found(loose[0], choice, _name(loose[0])))
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


def _series_in(path: Path, folders: Mapping[Path, Sequence[Path]], choice: Choice) -> list[_Found]:
    """The scans among folders of DICOM files: a folder each, but a series that is spread over several is one scan.

    Raises:
        InputError: files without SeriesInstanceUID lie next to or above those of other series.
    """
    from volseg.data.io.dicom.reader import series_uids  # noqa: PLC0415 - pydicom is loaded only where it is needed

    stated = {folder: series_uids(files) for folder, files in folders.items()}
    # Folders of reports or segmentations alone are no scans.
    uids = {folder: own for folder, own in stated.items() if own is not None} or dict.fromkeys(stated, frozenset())
    if len(set().union(*uids.values())) == 1 and all(own and "" not in own for own in uids.values()):
        return [_Found(path, choice, _name(path))]
    found: list[_Found] = []
    for folder, own in uids.items():
        others = {uid for other, theirs in uids.items() if other != folder for uid in theirs} - {""}
        below = any(folder in other.parents for other in uids)
        if not below and not own & others:
            found.append(_Found(folder, choice, _name(folder)))
        elif "" in own:
            raise InputError(
                f"{folder} contains DICOM files without SeriesInstanceUID next to those of other series, so they "
                "cannot be told apart; move each series to a separate folder."
            )
        else:
            found += [_Found(path, replace(choice, series=uid), _name(folder)) for uid in sorted(own)]
    # A series in several folders is found in each; it has the name of the first.
    first = {(scan.path, scan.choice): scan for scan in reversed(found)}
    return _distinct_names(list(first.values()), path)


def _distinct_names(scans: list[_Found], root: Path) -> list[_Found]:
    """Scans whose names differ: those with one name get that of the folders around them, or a number."""
    counts = Counter(scan.name for scan in scans)
    named: list[_Found] = []
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
    """Whether this is a .dcm or .ima file, or a file without suffix or named by a UID that starts like DICOM."""
    suffix = path.suffix.lower()
    if not path.is_file():
        return False
    if suffix in DICOM_SUFFIXES:
        return True
    if suffix and not suffix[1:].isdecimal():
        return False
    with open(path, "rb") as stream:
        return begins_as_dicom(stream.read(132))


def _visible(folder: Path) -> list[Path]:
    """The entries of a folder in sorted order, without hidden ones."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _name(scan: Path) -> str:
    """The name of a scan without the suffix of its format."""
    return stem_of(_absolute(scan))


def _output_suffix(scan: Path) -> str:
    """The suffix of a scan's label image; NIfTI for DICOM."""
    suffix = image_suffix(scan) or ".nii.gz"
    return ONE_FILE_SUFFIX.get(suffix, suffix)


def _real(path: Path) -> Path:
    """The path with its links resolved, whether or not it exists."""
    return Path(os.path.realpath(path))


def _absolute(path: Path) -> Path:
    """The absolute path without '..', links kept, so that '.' has a name and a linked scan keeps its own."""
    return Path(os.path.abspath(path))
