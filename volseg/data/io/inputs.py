"""The inputs and outputs of `volseg predict INPUT...`: finding the cases, and planning the paths of their results.

Cases are found by file names, and by a file's first bytes if its name does not tell whether it is DICOM.

A scan is an image file, a .zip, a DICOMDIR or a folder of a DICOM series, or a DICOM file. One series that is spread
over several folders is one scan.
"""

import filecmp
import logging
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from volseg.data.io.choice import ONLY, Choice
from volseg.data.io.folders import Found, absolute, name_of, scans_at
from volseg.data.io.formats import DICOM_SUFFIXES, SUFFIXES, image_suffix, result_stem, sibling
from volseg.data.io.provenance import is_record, read_record
from volseg.data.io.reading import read_label
from volseg.errors import InputError, UsageError, VolsegError
from volseg.files import (
    access_to,
    as_json,
    discard,
    finish_files,
    remove_leftovers_of,
    require_writable,
    temporary_path,
    writing,
)
from volseg.system import file_lock
from volseg.text import first_few

logger = logging.getLogger(__name__)

# A scan with a detached header gets its result in the one-file form of the format.
ONE_FILE_SUFFIX = {".nhdr": ".nrrd", ".mhd": ".mha"}
NNUNET_CHANNEL = re.compile(r"(.+)_(\d{4})")
# Beside results: the names of those that a process is about to write, and the file that it locks as long as it lives.
_CLAIM, _CLAIMED = "claim", "claimed"
# Of files that are no label image: whoever gives such a name does not mean a folder.
_NO_FOLDER = (".gz", ".hdr", ".img", ".jpeg", ".jpg", ".json", ".npy", ".png", ".tif", ".tiff", ".zip")
# Seconds within which a process that holds its lock has written its claim.
_CLAIM_SECONDS = 5.0


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
        InputError: a missing or unreadable path, an unknown format, a folder without scans, or a file of
            a result.
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
    given: dict[tuple[Path, Choice], Found] = {}
    for path in inputs:
        _reject_result_file(path)
        with access_to(path, private=True):
            scans = scans_at(path, choice)
        for scan in scans:
            given.setdefault((absolute(scan.path), scan.choice), scan)
    folders: dict[Path, list[Found]] = defaultdict(list)
    for (place, _), scan in given.items():
        folders[place.parent].append(scan)
    return [case for scans in folders.values() for case in _cases_among(scans, len(channels))]


def _reject_result_file(path: Path) -> None:
    """Reject a file that belongs to a result, which a pattern such as results/*.nii.gz names with the label images."""
    stem = result_stem(path)
    if stem is not None and is_record(path.with_name(f"{stem}.json")):
        raise InputError(f"{path} belongs to the result {stem} beside it and is no scan. Give the scan itself.")


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
    absent: Callable[[Path], Collection[str] | None] = lambda _: (),
) -> list[tuple[Case, Path]]:
    """Decide before any computation which cases to segment and where to write each label image.

    Args:
        cases: see `find_cases`.
        out: with one case and a name that ends in an image suffix, the label image; otherwise a folder.
        overwrite: overwrite existing results.
        skip_existing: skip cases whose result exists with all its files.
        also: suffixes of further files of a result, such as ".probabilities.npy".
        absent: which of these suffixes the result of an existing label image cannot have; None if it is another
            result than the one that is wanted, or has no record.

    Raises:
        UsageError: two cases with one output path; a result that exists, would overwrite a scan, would lie in a DICOM
            series, or cannot be written; or both options.
    """
    if overwrite and skip_existing:
        raise UsageError("--overwrite and --skip-existing contradict each other. Give one of them.")
    outputs = output_paths(cases, out)
    protect_scans(outputs, [path for case in cases for path in case.paths])
    # A JSON file without a label image is not a result of volseg; it may be a scan's own sidecar.
    sidecars = [sibling(output, ".json") for output in outputs if not os.path.exists(output)]
    taken = [sidecar for sidecar in sidecars if os.path.exists(sidecar) and not (skip_existing and is_record(sidecar))]
    if taken and not overwrite:
        raise UsageError(
            f"The JSON report of a result would overwrite {taken[0]}. Choose another --output, or add --overwrite."
        )
    jobs = list(zip(cases, outputs, strict=True))
    files = [[output, *(sibling(output, suffix) for suffix in also)] for output in outputs]
    present = [[file for file in one if os.path.exists(file)] for one in files]
    if skip_existing:
        # The label image is written last; other files without it come from an interrupted run.
        jobs = [job for job, one, found in zip(jobs, files, present, strict=True) if not _is_there(one, found, absent)]
    existing = [found[0] for found in present if found]
    if existing and not overwrite and not skip_existing:
        raise UsageError(
            f"{len(existing)} of {len(outputs)} results exist already, the first is {existing[0]}. "
            "Add --overwrite to overwrite them or --skip-existing to keep them."
        )
    others = (".json", *also)
    require_writable(file for _, label in jobs for file in (label, *(sibling(label, suffix) for suffix in others)))
    return jobs


def _is_there(files: Sequence[Path], found: Sequence[Path], absent: Callable[[Path], Collection[str] | None]) -> bool:
    """Whether the files of a result are all there but those that it cannot have, see `plan_outputs`."""
    gone = absent(files[0])
    return gone is not None and [files[0], *_without(files, gone)] == list(found)


def _without(files: Sequence[Path], suffixes: Collection[str]) -> list[Path]:
    """The further files of a result but those with some suffixes; the first is its label image."""
    label, *others = files
    return [file for file in others if file not in {sibling(label, suffix) for suffix in suffixes}]


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
    if out.suffix.lower() in (*DICOM_SUFFIXES, *_NO_FOLDER) and not os.path.isdir(out):
        raise UsageError(
            f"--output {out} ends in {out.suffix}, but it is the label image or a folder. Give one of "
            f"{', '.join(SUFFIXES)}, or a folder; pictures and DICOM results lie beside the label image, named as it."
        )
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


def is_unrecorded(labels: Path) -> bool:
    """Whether a label image has no record: it is the user's own, or a process was killed before it wrote the record."""
    if is_record(sibling(labels, ".json")) or not os.path.exists(labels):
        return False
    try:
        read_label(labels)
    except VolsegError:
        logger.warning("%s is no label image and has no record; it stays as it is", labels)
        return False
    return True


def keep_unrecorded(old: Path, new: Path) -> None:
    """Give a label image without a record a second name, if one with other bytes is about to take its place.

    Raises:
        ResourceError: the name cannot be made.
    """
    if not is_unrecorded(old):
        return
    with writing(old):
        if not filecmp.cmp(old, new, shallow=False):
            kept = old.with_name(f"{old.name}.{time.time_ns()}.kept")
            os.link(old, kept)
            logger.warning("%s had no record and another content; it is kept as %s", old, kept.name)


@contextmanager
def claimed(outputs: Sequence[Path], also: Sequence[str] = ()) -> Iterator[None]:
    """Keep other processes from writing the same results: of two, the one that came first goes on.

    Two processes may write different results into one folder. Where the file system has no locks, nothing is known of
    others; each result then is that of one of them, whole. What killed processes left of these results is put in its
    place if it was complete, else removed.

    Args:
        outputs: the label images, in one folder, which is made if it does not exist.
        also: suffixes of further files of a result.

    Raises:
        UsageError: another process is writing one of them.
        ResourceError: the folder cannot be written to.
    """
    folder, names = outputs[0].parent, sorted(output.name for output in outputs)
    claim = temporary_path(folder / _CLAIM)
    lock = claim.with_suffix(f".{_CLAIMED}")
    made = [parent for parent in (folder, *folder.parents) if not os.path.lexists(parent)]
    try:
        with ExitStack() as locked:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                sure = locked.enter_context(file_lock(lock))
            # The time is taken when the lock can be seen, and others wait for it: so one of two processes is the later.
            stamp = [time.time_ns(), claim.name]
            with writing(folder):
                claim.write_text(as_json({"since": stamp, "names": names}), encoding="utf-8")
            if sure:
                _refuse_claimed(folder, set(names), stamp)
                finish_files(folder, names)
                remove_leftovers_of([*outputs, *(sibling(output, suffix) for output in outputs for suffix in also)])
            try:
                yield
            finally:
                discard(claim, lock)
    finally:
        discard(claim, lock)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()


def _refuse_claimed(folder: Path, names: set[str], stamp: list[Any]) -> None:
    """Reject names that another living process claimed earlier; remove the claims of dead ones."""
    for lock in folder.glob(f".????????.tmp.{_CLAIMED}"):
        claim = lock.with_suffix(f".{_CLAIM}")
        if claim.name == stamp[1]:
            continue
        other = _claim_of_living(lock, claim)
        taken = names & set(other.get("names", ()))
        if taken and other["since"] < stamp:
            raise UsageError(
                f"Another process is writing {first_few(sorted(taken))} into {folder}. Wait for it, stop it, or choose "
                "another --output."
            )


def _claim_of_living(lock: Path, claim: Path) -> dict[str, Any]:
    """What another process claims; empty if it has ended, and then its files are removed."""
    until = time.monotonic() + _CLAIM_SECONDS
    while time.monotonic() < until:
        try:
            with file_lock(lock):
                discard(claim, lock)
            return {}
        except BlockingIOError:
            if found := read_record(claim):
                return found
        except OSError:
            return {}
        time.sleep(0.01)
    return {}


def protect_scans(outputs: Sequence[Path], scans: Sequence[Path]) -> None:
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
        with access_to(path, private=True):
            scans = scans_at(path, choice)
        if [scan.path for scan in scans] != [path]:
            raise UsageError(f"--channel {channel}={path} is a folder of scans. Give one scan.")
    return Case(name_of(paths[0]), paths, _output_suffix(paths[0]), choice)


def _cases_among(scans: list[Found], channels: int) -> list[Case]:
    """The cases of one folder: by nnU-Net's file names if all scans have them, otherwise one for each scan."""
    scans = sorted(scans, key=lambda scan: scan.name)
    sets: dict[str, dict[int, Found]] = defaultdict(dict)
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


def _case(name: str, scans: Sequence[Found]) -> Case:
    return Case(name, tuple(scan.path for scan in scans), _output_suffix(scans[0].path), scans[0].choice)


def _output_suffix(scan: Path) -> str:
    """The suffix of a scan's label image; NIfTI for DICOM."""
    suffix = image_suffix(scan) or ".nii.gz"
    return ONE_FILE_SUFFIX.get(suffix, suffix)


def _real(path: Path) -> Path:
    """The path with its links resolved, whether or not it exists."""
    return Path(os.path.realpath(path))
