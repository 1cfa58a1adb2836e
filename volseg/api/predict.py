"""Segment scans into files: reading, computing and writing overlap, and a case that fails does not stop the others."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, TypeAlias

from volseg.api.outputs import OutputFormat, find_format, find_formats
from volseg.api.predicting.files import PROBABILITIES, Prediction, record_at, write_case
from volseg.api.segmenter import Segmenter
from volseg.data.io.choice import chosen, volume_number
from volseg.data.io.formats import is_dicom, sibling
from volseg.data.io.inputs import Case, by_volume, claimed, find_cases, is_unrecorded, output_paths, plan_outputs
from volseg.data.io.reading import count_volumes
from volseg.errors import Stopped, UsageError, VolsegError
from volseg.files import discard, given_path, temporary_path
from volseg.progress import Progress, only_forwards, silent
from volseg.text import first_few

MOST_WRITERS = 4  # at once, where several scans are at work
_Plan: TypeAlias = Callable[[], list[tuple[Case, Path]]]
_Claim: TypeAlias = Callable[[Sequence[Path]], AbstractContextManager[None]]
# The options of `Segmenter.load` with their defaults.
_OPTIONS = signature(Segmenter.load).parameters
DEFAULTS = {name: one.default for name, one in _OPTIONS.items() if name not in ("model", "network")}


class Predictions(Iterator[Prediction]):
    """The outcomes of `predict`, in order; the work is done while they are iterated over.

    Attributes:
        jobs: the cases to segment, and the label image of each; `len()` is their number.
        skipped: number of cases that were skipped because their result already exists.
    """

    def __init__(self, jobs: Sequence[tuple[Case, Path]], skipped: int, outcomes: Iterator[Prediction]) -> None:
        self.jobs, self.skipped = tuple(jobs), skipped
        self._outcomes = outcomes

    def __len__(self) -> int:
        return len(self.jobs)

    def __next__(self) -> Prediction:
        return next(self._outcomes)


def predict(
    inputs: str | Path | Sequence[str | Path] | None,
    model: str | Path | Segmenter,
    output: str | Path,
    *,
    channels: Mapping[str, str | Path] | None = None,
    device: str = "auto",
    precision: str = "auto",
    overlap: float = 0.5,
    tta: str = "none",
    max_memory: str | int | None = None,
    crop: str = "none",
    series: str | int | None = None,
    volume: int | str | None = None,
    untilt: bool = False,
    probabilities: bool = False,
    to: str | Sequence[str] = "nifti",
    preview: bool = False,
    uncertainty: bool = False,
    overwrite: bool = False,
    skip_existing: bool = False,
    progress: Progress = silent,
) -> Predictions:
    """Segment scans into files, as `volseg predict` does. The scans are segmented while you iterate over the outcomes.

    The call itself checks everything that can be checked before any scan is segmented.

    Args:
        inputs: a scan, a DICOM series folder or zip, a folder of scans, or several of them.
        model: a bundled name, the path of a model file, or a loaded `Segmenter`, which keeps the options it was loaded
            with (device, precision, overlap, tta, max_memory, crop), and its own network.
        output: with one case and a name that ends in an image suffix, the label image; otherwise a folder.
        channels: the scan of each channel of the model by name; `inputs` is then None.
        device: as for `Segmenter.load`, like the five that follow.
        precision, overlap, tta, max_memory, crop: see `device`.
        series: SeriesInstanceUID or SeriesNumber, where an input holds several DICOM series.
        volume: number of a volume of 4-D scans, from 1; or "all": each volume is a case of its own, named <name>_tN.
        untilt: resample slices with gantry tilt to an upright grid for the network; the labels stay on the slices.
        probabilities: also write the class probabilities to `<stem>.probabilities.npy`, float16 (C, I, J, K).
        to: output formats besides "nifti", the label image, which is always written. Options of a format follow it
            after colons: "dicom-seg:labelmap". DICOM formats are for DICOM series alone.
        preview: also write a picture, as "preview" in `to`.
        uncertainty: also write a map of uncertainty, as "uncertainty" in `to`.
        overwrite: replace existing results.
        skip_existing: skip cases whose result already exists.
        progress: called with the fraction of all cases that is done.

    Returns:
        An iterator over the outcomes, in order; a case that fails is an outcome with an `error`, not an exception.

    Raises:
        UsageError: an option has an invalid value, or results exist, coincide or cannot be written.
        InputError: an input or the model is missing or unreadable.
        Stopped: (while iterating) Ctrl-C; the results so far are complete.
    """
    formats = _formats(to, {"preview": preview, "uncertainty": uncertainty})
    options = {
        "device": device, "precision": precision, "overlap": overlap, "tta": tta, "max_memory": max_memory, "crop": crop
    }  # fmt: skip
    segmenter = _loaded(model, options)
    names = tuple(one.name for one in segmenter.card.plan.channels)
    paths = [inputs] if isinstance(inputs, str | Path) else inputs or []
    named = {name: given_path(path) for name, path in channels.items()} if channels else None
    choice = chosen(series, volume_number(volume), untilt)
    cases = find_cases([given_path(path) for path in paths], names, named, choice)
    if volume == "all":
        cases = [one for case in cases for one in _volumes_of(case, len(cases) == 1)]
    _require_dicom(cases, formats)
    extra_suffixes = [*([PROBABILITIES] if probabilities else []), *(one.suffix for one in formats if one.suffix)]
    place = given_path(output)
    plan = partial(
        plan_outputs, cases, place, overwrite, skip_existing, extra_suffixes, partial(_absent, formats, skip_existing)
    )
    claim = partial(claimed, also=(".json", PROBABILITIES))
    jobs = _planned(plan, claim, output_paths(cases, place))
    segmented = _segment_files(segmenter, jobs, formats, only_forwards(progress), probabilities, skip_existing)
    outcomes = _under(plan, claim, jobs, segmented)
    return Predictions(jobs, len(cases) - len(jobs), outcomes)


def _planned(plan: _Plan, claim: _Claim, outputs: Sequence[Path]) -> list[tuple[Case, Path]]:
    """The cases to segment, after what a killed process left of their results is put in its place or removed."""
    jobs = plan()  # Before a claim: a folder that holds all results need not be writable.
    if not jobs or not os.path.isdir(outputs[0].parent):
        return jobs
    with claim(outputs):
        return plan()


def _under(
    plan: _Plan, claim: _Claim, jobs: Sequence[tuple[Case, Path]], outcomes: Iterator[Prediction]
) -> Iterator[Prediction]:
    """The outcomes, computed while no other process may write the same results.

    Raises:
        UsageError: another process writes them, or has written them since they were planned.
    """
    if not jobs:
        return
    with claim([output for _, output in jobs]):
        if len(plan()) < len(jobs):
            raise UsageError("Another process has written some of the results meanwhile. Run the same command again.")
        yield from outcomes


def _volumes_of(case: Case, alone: bool) -> list[Case]:
    """The volumes of a case; one that cannot be read stays a case, so that it fails and the others do not.

    Raises:
        InputError: the only case cannot be read.
    """
    try:
        return by_volume(case, count_volumes(case.paths[0], case.choice))
    except VolsegError:
        if alone:
            raise
        return [case]


def _formats(to: str | Sequence[str], also: Mapping[str, bool]) -> list[OutputFormat]:
    """The output formats besides the label image, which is always written, in order.

    Raises:
        UsageError: a format does not exist, or two write the same file.
    """
    wanted = find_formats(to)
    known = {one.name for one in wanted}
    wanted += [find_format(name) for name, asked in also.items() if asked and name not in known]
    return [one for one in wanted if one.suffix]


def _require_dicom(cases: Sequence[Case], formats: Sequence[OutputFormat]) -> None:
    """Reject cases that are no DICOM, if a format refers to a DICOM series.

    Raises:
        UsageError: there are such cases.
    """
    asking = [one.name for one in formats if one.needs_dicom]
    others = [str(case.paths[0]) for case in cases if not is_dicom(case.paths[0])] if asking else []
    if others:
        raise UsageError(
            f"{first_few(asking)} can be written for DICOM series alone, found {first_few(others)}. Segment what is no "
            "DICOM on its own, without these formats in --to."
        )


def _absent(formats: Sequence[OutputFormat], needs_record: bool, labels: Path) -> list[str] | None:
    """The suffixes of formats that cannot hold an existing result, as its record says; None if it has other options.

    A result without its record is none, where it is needed: its process was killed.
    """
    record = record_at(labels)
    if needs_record and not record and is_unrecorded(labels):
        return None
    reasons, written = record.get("not_written", ()), record.get("formats", ())
    others = {one.name for one in formats if one.asked not in written}
    if others & {str(name).partition(":")[0] for name in written}:
        return None
    return [str(one.suffix) for one in formats if one.asked in reasons]


def _loaded(model: str | Path | Segmenter, options: Mapping[str, Any]) -> Segmenter:
    """The model, loaded with `options` unless it is already a `Segmenter`."""
    if not isinstance(model, Segmenter):
        return Segmenter.load(model, **options)
    changed = [name for name, value in options.items() if value != DEFAULTS[name]]
    if changed:
        raise UsageError(f"A loaded Segmenter keeps its own {', '.join(changed)}. Set them in Segmenter.load.")
    return model


def _segment_files(
    segmenter: Segmenter,
    jobs: Sequence[tuple[Case, Path]],
    formats: Sequence[OutputFormat],
    progress: Progress,
    probabilities: bool,
    keep: bool,
) -> Iterator[Prediction]:
    """Segment each case into its files, written while the next scans are segmented, unless memory is limited."""
    writers = min(segmenter.at_once, MOST_WRITERS)
    submitted: list[Future[Prediction]] = []
    taken = 0
    # They take their places with the other files of the result.
    files = [temporary_path(sibling(output, PROBABILITIES)) if probabilities else None for _, output in jobs]

    def show(_: str, fraction: float, text: str) -> None:
        done = len(submitted)
        progress("segment", (done + fraction) / len(jobs), f"{jobs[done][0].name}, {text}")

    try:
        maps = any(one.name == "uncertainty" for one in formats)
        scans = segmenter.map((case for case, _ in jobs), show, files, maps)
        # Closed before the writers are waited for and files removed: whatever ends this, no scan goes on after it.
        with ThreadPoolExecutor(writers, thread_name_prefix="volseg-write") as writer, closing(scans) as outcomes:
            for (case, output), file in zip(jobs, files, strict=True):
                # No name for the outcome here: it would keep a scan and its labels while the next one is computed.
                submitted.append(writer.submit(write_case, case, output, file, next(outcomes), formats, keep))
                if len(submitted) > writers:
                    yield submitted[taken].result()
                    taken += 1
                if segmenter.max_memory is not None:
                    wait(submitted[-1:])
            while taken < len(submitted):
                yield submitted[taken].result()
                taken += 1
    except KeyboardInterrupt as stop:
        # What was written until now is an outcome like the others.
        yield from (one.result() for one in submitted[taken:])
        failed = sum(one.result().error is not None for one in submitted)
        done = f"the results of {len(submitted) - failed} of {len(jobs)} cases are complete, {failed} failed"
        raise Stopped(f"Interrupted: {done}.") from stop
    finally:
        discard(*files)
