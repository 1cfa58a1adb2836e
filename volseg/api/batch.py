"""Many scans into many files: reading, computing and writing overlap, and one bad case stops no other."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from volseg.api.result import Result
from volseg.api.segmenter import Segmenter
from volseg.data.inputs import Case
from volseg.errors import Stopped, VolsegError
from volseg.progress import Progress, silent


@dataclass(frozen=True)
class Written:
    """What became of one case: a label image at `output`, or the error that kept it from one."""

    case: Case
    output: Path
    result: Result | None
    error: VolsegError | None


def segment_files(
    segmenter: Segmenter,
    jobs: Sequence[tuple[Case, Path]],
    also: Sequence[Callable[[Result, Path], None]] = (),
    progress: Progress = silent,
) -> Iterator[Written]:
    """Segment each case into its file, with its record beside it.

    One scan is read ahead and one result is written behind; no more than that is held.

    Args:
        segmenter: the loaded model.
        jobs: cases, and where the label image of each goes.
        also: further writers, called with the result and the path of the label image, such as `write_preview`.
        progress: told how far the windows of the present case are.

    Raises:
        Stopped: Ctrl-C; what was written is whole.
    """
    done = 0
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="volseg-write") as writer:
            behind: Future[Written] | None = None
            outcomes = segmenter.map((case for case, _ in jobs), progress)
            for (case, output), outcome in zip(jobs, outcomes, strict=True):
                following = writer.submit(_write, Written(case, output, outcome.result, outcome.error), also)
                if behind:
                    yield behind.result()
                behind, done = following, done + 1
            if behind:
                yield behind.result()
    except KeyboardInterrupt as stop:
        raise Stopped(
            f"Stopped after {done} of {len(jobs)} cases, whose results are whole. "
            "Go on with the same command and --skip-existing."
        ) from stop


def _write(done: Written, also: Sequence[Callable[[Result, Path], None]]) -> Written:
    """Write what was computed; a disk that refuses it is the case's error."""
    if done.result is None:
        return done
    try:
        done.result.save(done.output)
        for write in also:
            write(done.result, done.output)
    except VolsegError as error:
        return Written(done.case, done.output, None, error)
    return done
