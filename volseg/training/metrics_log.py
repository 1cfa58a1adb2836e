"""The record of a run: metrics.jsonl, one line per step, and the same as tensorboard events."""

import json
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from volseg.errors import ResourceError
from volseg.files import read_json_lines, write_text


class MetricsLog:
    """Appends records to RUN/metrics.jsonl and to tensorboard event files beside it.

    Args:
        run: the run folder.
        step: finished steps; lines past it (written after the checkpoint that is taken up) are dropped.
    """

    def __init__(self, run: Path, step: int = 0) -> None:
        path = run / "metrics.jsonl"
        kept = [record for record in read_json_lines(path) if record["step"] <= step]
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._lines = open(path, "a", encoding="utf-8")  # noqa: SIM115 - held open for the run
        self._events = SummaryWriter(run, purge_step=step + 1)

    def append(self, record: dict[str, Any]) -> None:
        """Add one step's record; it reaches the file at once, so that a reader can follow.

        Raises:
            ResourceError: the disk refused it.
        """
        try:
            self._lines.write(json.dumps(record) + "\n")
            self._lines.flush()
        except OSError as error:
            raise ResourceError(f"Could not write {self._lines.name}: {error.strerror}. Free some space.") from error
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                self._events.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Flush and close both."""
        self._lines.close()
        self._events.close()
