"""What `volseg predict INPUT...` means: which cases there are, and where their results go.

Cases are found by names, and by a file's first bytes where its name does not say whether it is DICOM.

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

# A header that points to voxels in a second file is written back as the one-file form of its format.
ONE_FILE_SUFFIX = {".nhdr": ".nrrd", ".mhd": ".mha"}
NNUNET_CHANNEL = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class Case:
    """One case to segment.

    Args:
        name: of the result, without suffix.
        paths: one scan per channel in the model's order, or a single one that holds all channels.
        output_suffix: of the result, for example ".nii.gz".
    """

    name: str
    paths: tuple[Path, ...]
    output_suffix: str


def find_cases(
    inputs: Sequence[Path], channels: Sequence[str], named_channels: Mapping[str, Path] | None = None
) -> list[Case]:
    """Find the cases among what was given to segment.

    Scans of one folder named case_0000, case_0001, ... are the channels of one case, if every scan there that
    was given belongs to a case with exactly the model's channels; otherwise each scan is a case.

    Args:
        inputs: scans and folders of scans; one that is given twice counts once.
        channels: the model's channel names.
        named_channels: instead of `inputs`, the scan of each channel; the case is named after the first channel's.

    Returns:
        In the order given; within one folder, by name.

    Raises:
        UsageError: inputs and named channels together, neither, or not exactly the model's channels.
        InputError: a path that is missing or closed to us, an unknown format, or a folder without scans.
    """
    if named_channels:
        if inputs:
            raise UsageError(
                f"Give either scans or --channel, found both: {inputs[0]} and {', '.join(named_channels)}."
            )
        return [_case_of_named(channels, named_channels)]
    if not inputs:
        raise UsageError("Nothing to segment. Give a scan or a folder of scans.")
    # A scan that is given twice, as by itself and by its folder, is one.
    given: dict[Path, Path] = {}
    for path in inputs:
        with access_to(path):
            scans = _scans_at(path)
        for scan in scans:
            given.setdefault(_absolute(scan), scan)
    folders: dict[Path, list[Path]] = defaultdict(list)
    for place, scan in given.items():
        folders[place.parent].append(scan)
    return [case for scans in folders.values() for case in _cases_among(scans, len(channels))]


def plan_outputs(
    cases: Sequence[Case],
    out: Path,
    overwrite: bool = False,
    skip_existing: bool = False,
    also: Sequence[str] = (),
) -> list[tuple[Case, Path]]:
    """Decide before any work which cases are segmented and where each label image goes.

    Args:
        cases: see `find_cases`.
        out: with one case and a name that ends in an image suffix, the label image; otherwise a folder.
        overwrite: replace results that exist.
        skip_existing: leave out the cases whose result exists, with all its files.
        also: suffixes of files that belong to a result beside its label image, such as ".probabilities.npy".

    Raises:
        UsageError: two cases with one output name, a result that exists, would replace a scan or lie in a DICOM
            series, or cannot be written, or both options.
    """
    if overwrite and skip_existing:
        raise UsageError("--overwrite and --skip-existing contradict each other. Give one of them.")
    outputs = output_paths(cases, out)
    _spare_scans(outputs, [path for case in cases for path in case.paths])
    # A file of the record's name without a label image is no result of ours, perhaps a scan's own sidecar.
    records = [sibling(output, ".json") for output in outputs if not os.path.exists(output)]
    taken = [record for record in records if os.path.exists(record)]
    if taken and not overwrite:
        raise UsageError(
            f"The record of a result would replace {taken[0]}. Choose another --output, or add --overwrite."
        )
    jobs = list(zip(cases, outputs, strict=True))
    files = [[output, *(sibling(output, suffix) for suffix in also)] for output in outputs]
    there = [[file for file in one if os.path.exists(file)] for one in files]
    if skip_existing:
        # The label image is written last, so that other files without it are those of a run that was stopped.
        jobs = [job for job, one, found in zip(jobs, files, there, strict=True) if found != one]
    existing = [found[0] for found in there if found]
    if existing and not overwrite and not skip_existing:
        raise UsageError(
            f"{len(existing)} of {len(outputs)} results exist already, the first is {existing[0]}. "
            "Add --overwrite to replace them or --skip-existing to keep them."
        )
    others = (".json", *also)
    require_writable(file for _, label in jobs for file in (label, *(sibling(label, suffix) for suffix in others)))
    return jobs


def output_paths(cases: Sequence[Case], out: Path) -> list[Path]:
    """The label image of each case, see `plan_outputs`.

    Raises:
        UsageError: two cases of one name, also where only their suffixes differ, as <name>.json is beside each
            result; or several cases but `out` names one file.
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
                f"{other.paths[0]} and {case.paths[0]} would both have the result '{case.name}'. "
                "Segment them one after the other, with different --output folders."
            )
    return [out / f"{case.name}{case.output_suffix}" for case in cases]


def _spare_scans(outputs: Sequence[Path], scans: Sequence[Path]) -> None:
    """Refuse results that would replace a scan, or lie among the slices of one, which is then no series any more."""
    places = {_real(scan) for scan in scans}
    series = {place for place in places if place.is_dir()}
    for output in outputs:
        if _real(output) in places:
            raise UsageError(f"The result {output} would replace the scan of that name. Choose another --output.")
        if (inside := _real(output).parent) in series:
            raise UsageError(
                f"The result {output} would lie in the DICOM series {inside}. "
                "Choose an --output outside of that folder."
            )


def _case_of_named(channels: Sequence[str], named: Mapping[str, Path]) -> Case:
    """The one case whose channels were given by name."""
    if set(named) != set(channels):
        raise UsageError(f"The model's channels are {', '.join(channels)}; --channel named {', '.join(named)}.")
    paths = tuple(named[channel] for channel in channels)
    for channel, path in zip(channels, paths, strict=True):
        with access_to(path):
            scans = _scans_at(path)
        if scans != [path]:
            raise UsageError(f"--channel {channel}={path} is a folder of scans. Give one scan.")
    return Case(_name(paths[0]), paths, _output_suffix(paths[0]))


def _cases_among(scans: list[Path], channels: int) -> list[Case]:
    """The cases of one folder: by the nnU-Net naming if all scans follow it in full, else one for each scan."""
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
            "Not every case in %s has exactly the files _0000 to _%04d, so each file is taken as a case of its own.",
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
            f"{path} has no known image format. Known: {', '.join(SUFFIXES)}, .zip of a DICOM series, .dcm; "
            "for a DICOM series give its folder."
        )
    if not path.is_dir():
        raise InputError(f"{path} is neither a file nor a folder. Give a scan or a folder of scans.")
    content = _visible(path)
    scans = [entry for entry in content if _is_scan_file(entry) or _is_series(entry)]
    if not scans and _is_series(path):
        return [path]
    loose = [entry for entry in content if entry.is_file() and entry.suffix.lower() == ".dcm"]
    if len(loose) > 1:
        raise InputError(
            f"{path} holds {len(loose)} DICOM files, the first is {loose[0].name}, beside other scans, the first is "
            f"{scans[0].name}. Put the DICOM files into a folder of their own, or give each scan by its path."
        )
    if not scans:
        raise InputError(f"{path} holds no scan. Known: {', '.join(SUFFIXES)}, .zip or folder of a DICOM series.")
    return scans + loose


def _is_series(path: Path) -> bool:
    """Whether this is a folder with DICOM files, and none of another scan format."""
    content = _visible(path) if path.is_dir() else []
    return any(map(_may_be_dicom, content)) and not any(map(_is_scan_file, content))


def _is_scan_file(path: Path) -> bool:
    """Whether this is an image or zip file by its name."""
    return path.is_file() and (image_suffix(path) is not None or path.suffix.lower() == ".zip")


def _may_be_dicom(path: Path) -> bool:
    """Whether this is a file named .dcm or .ima, or one without suffix or with a UID's number that begins as DICOM."""
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
    """What is in a folder, hidden entries left out, in a fixed order."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _name(scan: Path) -> str:
    """The name of a scan without the suffix of its format."""
    return stem_of(_absolute(scan))


def _output_suffix(scan: Path) -> str:
    """The suffix of the label image of a scan; DICOM becomes NIfTI."""
    suffix = image_suffix(scan) or ".nii.gz"
    return ONE_FILE_SUFFIX.get(suffix, suffix)


def _real(path: Path) -> Path:
    """The path with its links followed, whether or not anything is there."""
    return Path(os.path.realpath(path))


def _absolute(path: Path) -> Path:
    """The path with no '..' in it, links kept, so that '.' has a name and a linked scan its own."""
    return Path(os.path.abspath(path))
