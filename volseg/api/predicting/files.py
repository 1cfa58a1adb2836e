"""The files of one segmented case: all of them or none, and nothing of an earlier result beside them."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from volseg.api.outputs import OutputFormat, find_format
from volseg.api.result import Result
from volseg.api.segmenter import Outcome
from volseg.data.io.formats import sibling
from volseg.data.io.inputs import Case, keep_unrecorded
from volseg.data.io.provenance import is_record, read_record
from volseg.device import memory_errors
from volseg.errors import UsageError, VolsegError
from volseg.files import discard, whole_files, write_json, writing

logger = logging.getLogger(__name__)

PROBABILITIES = ".probabilities.npy"


@dataclass(frozen=True)
class Prediction:
    """The outcome of one case: a label image at `output` with its record, or an error.

    The voxels are not kept, so that many cases need no more memory than one.

    Attributes:
        case: its name and its files.
        output: the label image.
        record: the JSON record next to it: volumes, flags, warnings, model, seconds.
        error: why there is no result.
    """

    case: Case
    output: Path
    record: dict[str, Any] | None = None
    error: VolsegError | None = None

    @property
    def name(self) -> str:
        """The name of the case."""
        return self.case.name

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The files of the case: one per channel, or one that holds all channels."""
        return self.case.paths

    @property
    def input(self) -> Path:
        """The first of `inputs`, which for most models is the scan."""
        return self.case.paths[0]


def write_case(
    case: Case, output: Path, probabilities: Path | None, outcome: Outcome, formats: Sequence[OutputFormat], keep: bool
) -> Prediction:
    """Write the files of a case, all or none; if that fails, return the error as its outcome."""
    if outcome.result is None:
        return Prediction(case, output, error=_about_final(outcome.error, probabilities, output))
    try:
        kept, reasons = possible_formats(formats, outcome.result)
        names = ("nifti", *(one.asked for one in kept))
        result = replace(outcome.result.with_warnings(kept), formats=names, not_written=reasons)
        for name, reason in reasons.items():
            logger.warning("%s: %s: %s", case.name, name, reason)
        before = _files_of_result(output)
        # The label image is the last one, so that there is none without the others.
        with memory_errors("writing the result"), whole_files(output.parent, output.name) as folder:
            for one in kept:
                _write_format(one, result, folder / sibling(output, str(one.suffix)).name)
            write_json(folder / sibling(output, ".json").name, result.record)
            _write_format(find_format("nifti"), result, folder / output.name)
            if keep:
                keep_unrecorded(output, folder / output.name)
            if probabilities:
                with writing(sibling(output, PROBABILITIES)):
                    os.replace(probabilities, folder / sibling(output, PROBABILITIES).name)
        # What an earlier result had and this one has not must not pass for a part of it.
        named = {sibling(output, str(one.suffix)) for one in kept}
        for file in before - named - {sibling(output, PROBABILITIES) if probabilities else output}:
            with writing(file):
                file.unlink(missing_ok=True)
    except VolsegError as error:
        discard(probabilities)
        return Prediction(case, output, error=error)
    return Prediction(case, output, record=result.record)


def _about_final(error: VolsegError | None, temporary: Path | None, output: Path) -> VolsegError | None:
    """An error about the temporary file of the probabilities, as one about the file that was to be."""
    if error is not None and temporary is not None:
        final = str(sibling(output, PROBABILITIES))
        error.args = tuple(str(part).replace(str(temporary), final) for part in error.args)
    return error


def _files_of_result(labels: Path) -> set[Path]:
    """The files beside an existing label image that its record names, and its probabilities."""
    record = record_at(labels)
    try:
        known = [find_format(str(name)).suffix for name in record.get("formats", ())]
    # One of a format that was added in another process.
    except UsageError:
        known = []
    suffixes = [*(suffix for suffix in known if suffix), *([PROBABILITIES] if record else [])]
    return {sibling(labels, suffix) for suffix in suffixes}


def record_at(labels: Path) -> dict[str, Any]:
    """The record of an existing result; empty if there is none, or the file is something else."""
    path = sibling(labels, ".json")
    return read_record(path) if is_record(path) else {}


def possible_formats(formats: Sequence[OutputFormat], result: Result) -> tuple[list[OutputFormat], dict[str, str]]:
    """The formats to write, those in the place of others included, and why some cannot hold the result."""
    kept: dict[str, OutputFormat] = {}
    reasons: dict[str, str] = {}
    waiting = list(formats)
    while waiting:
        one = waiting.pop(0)
        if reason := one.reason_for_none(result):
            reasons[one.asked] = reason
            waiting += [find_format(one.instead)] if one.instead and one.instead not in reasons else []
        else:
            kept.setdefault(one.name, one)
    return list(kept.values()), reasons


def _write_format(output: OutputFormat, result: Result, path: Path) -> None:
    """Write one more format; one of the caller that raises must not end the other cases."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        output.write(result, path)
    except (VolsegError, MemoryError):
        raise
    except Exception as error:
        raise VolsegError(f"The output format of {path} failed: {type(error).__name__}: {error}.") from error
