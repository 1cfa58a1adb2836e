"""The metrics of a run: metrics.jsonl, one line per step, and the same values as TensorBoard events."""

import json
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from volseg.errors import ResourceError
from volseg.files import append_to, read_json_lines, utf8_path, write_text


class MetricsLog:
    """Appends records to RUN/metrics.jsonl and to TensorBoard event files next to it.

    Args:
        run: the run folder.
        step: finished steps; later lines, written after the checkpoint that a run resumes from, are removed, as are
            lines that `append` has not written.

    Raises:
        ResourceError: a file cannot be written.
    """

    def __init__(self, run: Path, step: int = 0) -> None:
        path = run / "metrics.jsonl"
        kept = {one["step"]: one for one in read_json_lines(path) if _is_record(one) and one["step"] <= step}
        write_text(path, "".join(json.dumps(kept[number]) + "\n" for number in sorted(kept)))
        self._lines = append_to(path)
        self._links = ExitStack()
        # TensorBoard opens its file by name for every few records.
        self._events = SummaryWriter(self._links.enter_context(utf8_path(run)), purge_step=step + 1)

    def append(self, record: dict[str, Any]) -> None:
        """Append the record of one step and flush it, so that other programs can follow the run.

        Raises:
            ResourceError: the disk is full or not writable.
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
        """Flush and close both files."""
        self._lines.close()
        self._events.close()
        self._links.close()


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
