"""The metrics of a run: metrics.jsonl, one line per step, and the same values as TensorBoard events."""

import json
import logging
import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from volseg.files import append_to, open_no_link, read_json_lines, write_text, writing

logger = logging.getLogger(__name__)


class MetricsLog:
    """Appends records to RUN/metrics.jsonl and to a TensorBoard event file next to it.

    Args:
        run: the run folder.
        step: finished steps; later lines, written after the checkpoint that a run resumes from, are removed, as are
            lines that `append` has not written.

    Raises:
        ResourceError: metrics.jsonl cannot be written.
        OSError: it cannot be read.
    """

    def __init__(self, run: Path, step: int = 0) -> None:
        self._path = run / "metrics.jsonl"
        kept = {one["step"]: one for one in read_json_lines(self._path) if _is_record(one) and one["step"] <= step}
        write_text(self._path, "".join(json.dumps(kept[number]) + "\n" for number in sorted(kept)))
        self._lines = append_to(self._path)
        self._events = _Events(run, step + 1)

    def append(self, record: dict[str, Any]) -> None:
        """Append the record of one step and flush it, so that other programs can follow the run.

        Raises:
            ResourceError: the disk is full or not writable.
        """
        with writing(self._path):
            self._lines.write(json.dumps(record) + "\n")
            self._lines.flush()
        self._events.append(record)

    def close(self) -> None:
        """Close both files, to which all records have been flushed."""
        # A failed write was reported, and closing would try it again.
        with suppress(OSError):
            self._lines.close()
        self._events.close()


class _Events:
    """A TensorBoard event file, which a run can do without: if the disk fails, it ends with a warning.

    TensorBoard's own writer prints a traceback from a thread then.

    Args:
        run: the folder of the file.
        first: the step of the first record; TensorBoard drops those of earlier files from it on.
    """

    def __init__(self, run: Path, first: int) -> None:
        # The names of `torch.utils.tensorboard`.
        self._path = run / f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.0"
        self._file: BinaryIO | None = None
        with self._or_none():
            self._file = os.fdopen(open_no_link(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab")
        self._write(Event(step=first, file_version="brain.Event:2"))
        self._write(Event(step=first, session_log=SessionLog(status=SessionLog.START)))

    def append(self, record: dict[str, Any]) -> None:
        """Append the numbers of a record and flush them."""
        numbers = {name: value for name, value in record.items() if name != "step" and isinstance(value, int | float)}
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._write(Event(step=record["step"], summary=Summary(value=values)))

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            if self._file:
                self._file.close()

    def _write(self, event: Event) -> None:
        if self._file:
            event.wall_time = time.time()
            with self._or_none():
                RecordWriter(self._file).write(event.SerializeToString())
                self._file.flush()

    @contextmanager
    def _or_none(self) -> Iterator[None]:
        """Go on without the file if it cannot be written."""
        try:
            yield
        except OSError as error:
            logger.warning("Could not write %s (%s). The run goes on without TensorBoard events; metrics.jsonl has the "
                           "same values.", self._path, error.strerror or error)  # fmt: skip
            self.close()
            self._file = None


def _is_record(one: dict[str, Any]) -> bool:
    """Whether a line has what reports and `volseg info` read of a step."""
    dice = one.get("dice", {})
    scores = [one.get("foreground_dice"), *(dice.values() if isinstance(dice, dict) else ["none"])]
    return (
        isinstance(one.get("step"), int)
        and all(_is_number(one.get(name)) for name in ("step", "seconds", "progress", "loss", "learning_rate"))
        and all(score is None or _is_number(score) for score in scores)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
