"""The record of a run: metrics.jsonl, one line per step, and the same as tensorboard events."""

import json
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from volseg.files import write_text


class MetricsLog:
    """Appends records to RUN/metrics.jsonl and to tensorboard event files beside it.

    Args:
        run: the run folder.
        step: finished steps; lines past it (written after the checkpoint that is taken up) are dropped.
    """

    def __init__(self, run: Path, step: int = 0) -> None:
        path = run / "metrics.jsonl"
        kept = [line for line in read_metrics(path) if line["step"] <= step] if path.exists() else []
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._lines = open(path, "a", encoding="utf-8")  # noqa: SIM115 - held open for the run
        self._events = SummaryWriter(run, purge_step=step + 1)

    def append(self, record: dict[str, Any]) -> None:
        """Add one step's record; it reaches the file at once, so that a reader can follow."""
        self._lines.write(json.dumps(record) + "\n")
        self._lines.flush()
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                self._events.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Flush and close both."""
        self._lines.close()
        self._events.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line cut off by a kill is dropped."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
