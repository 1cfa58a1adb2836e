"""Metrics, log file, progress and checkpoints of a run while it trains."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from statistics import fmean
from typing import Any, TextIO

from volseg.files import append_to
from volseg.progress import Progress
from volseg.text import OneLine
from volseg.training.run.folder import CHECKPOINT
from volseg.training.run.metrics_log import MetricsLog
from volseg.training.state import TrainingState

logger = logging.getLogger(__name__)


class Bookkeeper:
    """Keeps metrics, log lines, the progress bar and the checkpoint up to date while a run trains.

    Args:
        folder: the run folder.
        state: of the run.
        progress: called with the fraction of the run that is done.
        checkpoint_seconds: time between two checkpoints.
        labels: the names of the labels, in the order of the plan.
    """

    def __init__(
        self,
        folder: Path,
        state: TrainingState,
        progress: Progress,
        checkpoint_seconds: float,
        labels: Sequence[str] = (),
    ) -> None:
        self._folder, self._state, self._progress = folder, state, progress
        self._checkpoint_seconds = checkpoint_seconds
        self._metrics = MetricsLog(folder, state.step)
        self._saved = time.monotonic()
        self._dice = ""
        self._labels = labels
        self._held: list[Sequence[float]] = []
        self._last_progress = 0.0

    def record(self, record: dict[str, Any]) -> None:
        """Store one step's record, see `fit`.

        Instead of its "held", a hundred records over the run have "patches_with_label", {label name: fraction of the
        patches since the record before that have the label}.
        """
        held = record.pop("held", None)
        if held is not None:
            self._held.append(held)
        if self._held and math.floor(100 * record["progress"]) > math.floor(100 * self._last_progress):
            means = (round(fmean(column), 4) for column in zip(*self._held, strict=True))
            record["patches_with_label"] = dict(zip(self._labels, means, strict=True))
            self._held.clear()
        self._last_progress = record["progress"]
        self._metrics.append(record)
        dice = record.get("foreground_dice")
        if dice is not None:
            self._dice = f", Dice {dice:.3f}"
            logger.info("step %d: validation Dice %.4f", record["step"], dice)
        text = f"step {record['step']}, loss {record['loss']:.3f}{self._dice}"
        self._progress("train", min(record["progress"], 1.0), text)
        if time.monotonic() - self._saved > self._checkpoint_seconds:
            self._state.save(self._folder / CHECKPOINT)
            self._saved = time.monotonic()

    def close(self) -> None:
        """Close the metrics files."""
        self._metrics.close()


@contextmanager
def bookkeeping(
    folder: Path, state: TrainingState, progress: Progress, checkpoint_seconds: float, labels: Sequence[str] = ()
) -> Iterator[Callable[[dict[str, Any]], object]]:
    """What stores the record of each step: a `Bookkeeper` on the rank that writes, nothing on the others."""
    if not state.ranks.first:
        yield dict
        return
    with closing(Bookkeeper(folder, state, progress, checkpoint_seconds, labels)) as books:
        yield books.record


@contextmanager
def run_log(folder: Path, first: bool) -> Iterator[None]:
    """Write the package's log lines to RUN/log.txt as well; on other ranks than the first let only warnings through."""
    with _log_file(folder / "log.txt") if first else _warnings_only():
        yield


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    stream = append_to(path)
    handler = _Quiet(stream)
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(message)s"))
    package = logging.getLogger("volseg")
    before = package.level
    if before == logging.NOTSET:
        package.setLevel(logging.INFO)
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        if before == logging.NOTSET:
            package.setLevel(before)
        # What a full disk has no room for is lost, and has been on standard error.
        with suppress(OSError):
            stream.close()


class _Quiet(logging.StreamHandler[TextIO]):
    """A handler of log lines that a full disk does not make print a traceback for each of them."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's interface
        """Leave the line out."""


@contextmanager
def _warnings_only() -> Iterator[None]:
    package = logging.getLogger("volseg")
    before = package.level
    package.setLevel(logging.WARNING)
    try:
        yield
    finally:
        package.setLevel(before)
