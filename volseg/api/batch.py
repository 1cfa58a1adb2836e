"""Many scans into many files: reading, computing and writing overlap, and one bad case stops no other."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volseg.api.result import Result
from volseg.api.segmenter import Outcome, Segmenter
from volseg.data.formats import beside
from volseg.data.inputs import Case
from volseg.device import memory_errors
from volseg.errors import Stopped, VolsegError
from volseg.progress import Progress, silent

PROBABILITIES = ".probabilities.npy"


@dataclass(frozen=True)
class Written:
    """What became of one case: a label image at `output` with its record, or the error that kept it from one.

    The voxels are not kept, so that many cases need no more memory than one.
    """

    case: Case
    output: Path
    record: dict[str, Any] | None = None
    error: VolsegError | None = None


def segment_files(
    segmenter: Segmenter,
    jobs: Sequence[tuple[Case, Path]],
    also: Sequence[Callable[[Result, Path], None]] = (),
    progress: Progress = silent,
    probabilities: bool = False,
) -> Iterator[Written]:
    """Segment each case into its file, with its record beside it.

    One scan is read ahead and one result is written behind; no more than that is held, and neither where memory is
    limited.

    Args:
        segmenter: the loaded model.
        jobs: cases, and where the label image of each goes.
        also: further writers, called with the result and the path of the label image, such as `write_preview`.
        progress: told how far the cases are.
        probabilities: whether to write `<stem>.probabilities.npy` beside each label image as well.

    Raises:
        Stopped: Ctrl-C; what was written is whole.
    """
    handed_on: list[Future[Written]] = []

    def show(_: str, share: float, text: str) -> None:
        done = len(handed_on)
        progress("segment", (done + share) / len(jobs), f"{jobs[done][0].name}, {text}")

    try:
        with ThreadPoolExecutor(1, thread_name_prefix="volseg-write") as writer:
            files = [beside(output, PROBABILITIES) if probabilities else None for _, output in jobs]
            outcomes = segmenter.map((case for case, _ in jobs), show, files)
            for (case, output), file in zip(jobs, files, strict=True):
                # No name for the outcome here: it would keep a scan and its labels while the next one is computed.
                handed_on.append(writer.submit(_write, case, output, file, next(outcomes), also))
                if len(handed_on) > 1:
                    yield handed_on[-2].result()
                if segmenter.max_memory is not None:
                    wait(handed_on[-1:])
            if handed_on:
                yield handed_on[-1].result()
    except KeyboardInterrupt as stop:
        failed = sum(one.result().error is not None for one in handed_on)
        but = f", but for {failed} that failed" if failed else ""
        raise Stopped(f"Stopped after {len(handed_on)} of {len(jobs)} cases, whose results are whole{but}.") from stop


def _write(
    case: Case,
    output: Path,
    probabilities: Path | None,
    outcome: Outcome,
    also: Sequence[Callable[[Result, Path], None]],
) -> Written:
    """Write what was computed; a disk that refuses it is the case's error, and its `probabilities` go as well."""
    if outcome.result is None:
        return Written(case, output, error=outcome.error)
    try:
        with memory_errors("writing the result"):
            outcome.result.save(output)
            for write in also:
                write(outcome.result, output)
    except VolsegError as error:
        if probabilities:
            probabilities.unlink(missing_ok=True)
        return Written(case, output, error=error)
    return Written(case, output, record=outcome.result.record)
