"""The inputs and outputs of `volseg predict INPUT...`: finding the cases, and planning the paths of their results.

Cases are found by file names, and by a file's first bytes if its name does not tell whether it is DICOM.

A scan is an image file, a .zip or folder of a DICOM series, or one DICOM file ending in .dcm.
"""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from volseg.data.io.formats import DICOM_SUFFIXES, SUFFIXES, begins_as_dicom, image_suffix, sibling, stem_of
from volseg.errors import InputError, UsageError
from volseg.files import access_to, require_writable

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
    """

    name: str
    paths: tuple[Path, ...]
    output_suffix: str


def find_cases(
    inputs: Sequence[Path], channels: Sequence[str], named_channels: Mapping[str, Path] | None = None
) -> list[Case]:
    """Find the cases to segment among paths.

    Scans of one folder named case_0000, case_0001, ... are the channels of one case, if every given scan of that folder
    belongs to a case with exactly the model's channels; otherwise each scan is a case.

    Args:
        inputs: scans and folders of scans; duplicates count once.
        channels: the model's channel names.
        named_channels: instead of `inputs`, the scan of each channel; the case is named after the first channel's.

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
        return [_case_of_named(channels, named_channels)]
    if not inputs:
        raise UsageError("Nothing to segment. Give a scan or a folder of scans.")
    # A scan may be given twice, for example by its path and by its folder.
    given: dict[Path, Path] = {}
    for path in inputs:
        with access_to(path):
            scans = _scans_at(path)
        for scan in scans:
            given.setdefault(_absolute(scan), scan)
    folders: dict[Path, list[Path]] = defaultdict(list)
    for absolute, scan in given.items():
        folders[absolute.parent].append(scan)
    return [case for scans in folders.values() for case in _cases_among(scans, len(channels))]


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


def _case_of_named(channels: Sequence[str], named: Mapping[str, Path]) -> Case:
    """The case whose channels were given by name."""
    if set(named) != set(channels):
        raise UsageError(
            f"The model's channels are {', '.join(channels)}, found --channel {', '.join(named)}. Give each once."
        )
    paths = tuple(named[channel] for channel in channels)
    for channel, path in zip(channels, paths, strict=True):
        with access_to(path):
            scans = _scans_at(path)
        if scans != [path]:
            raise UsageError(f"--channel {channel}={path} is a folder of scans. Give one scan.")
    return Case(_name(paths[0]), paths, _output_suffix(paths[0]))


def _cases_among(scans: list[Path], channels: int) -> list[Case]:
    """The cases of one folder: by nnU-Net's file names if all scans have them, otherwise one for each scan."""
    scans = sorted(scans, key=_name)
    sets: dict[str, dict[int, Path]] = defaultdict(dict)
    for scan in scans:
        if match := NNUNET_CHANNEL.fullmatch(_name(scan)):
            sets[match[1]][int(match[2])] = scan
    full = all(sorted(paths) == list(range(channels)) for paths in sets.values())
    if full and sum(len(paths) for paths in sets.values()) == len(scans):
        return [Case(name, tuple(paths.values()), _output_suffix(paths[0])) for name, paths in sets.items()]
    if sets and channels > 1:
        logger.warning(
            "Not every case in %s has exactly the files _0000 to _%04d, so each file is treated as a separate case.",
            scans[0].parent,
            channels - 1,
        )
    return [Case(_name(scan), (scan,), _output_suffix(scan)) for scan in scans]


def _scans_at(path: Path) -> list[Path]:
    """The scan at `path`, or the scans in that folder."""
    if not path.exists():
        raise InputError(f"{path} does not exist. Give a scan or a folder of scans.")
    if path.is_file():
        if _is_scan_file(path) or path.suffix.lower() == ".dcm":
            return [path]
        raise InputError(
            f"{path} has no supported image format. Supported: {', '.join(SUFFIXES)}, .zip of a DICOM series, .dcm; "
            "for a DICOM series give its folder."
        )
    if not path.is_dir():
        raise InputError(f"{path} is neither a file nor a folder. Give a scan or a folder of scans.")
    entries = _visible(path)
    scans = [entry for entry in entries if _is_scan_file(entry) or _is_series(entry)]
    if not scans and _is_series(path):
        return [path]
    loose = [entry for entry in entries if entry.is_file() and entry.suffix.lower() == ".dcm"]
    if len(loose) > 1:
        raise InputError(
            f"{path} contains {len(loose)} DICOM files (the first is {loose[0].name}) next to other scans (the first "
            f"is {scans[0].name}). Move the DICOM files to a separate folder, or give each scan by its path."
        )
    if not scans:
        raise InputError(f"{path} holds no scan. Supported: {', '.join(SUFFIXES)}, .zip or folder of a DICOM series.")
    return scans + loose


def _is_series(path: Path) -> bool:
    """Whether this is a folder with DICOM files and without files of another scan format."""
    entries = _visible(path) if path.is_dir() else []
    return any(map(_may_be_dicom, entries)) and not any(map(_is_scan_file, entries))


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
