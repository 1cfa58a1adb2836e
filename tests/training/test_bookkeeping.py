"""Metrics, progress, log lines and checkpoints of a run while it trains."""

import json
import logging
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from volseg.errors import ResourceError
from volseg.training.run.bookkeeping import bookkeeping, run_log
from volseg.training.run.metrics_log import MetricsLog


class Clock:
    """A clock that moves only when it is told to."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


class State:
    """Counts how often it is saved, and where."""

    def __init__(self, step=0, first=True):
        self.step, self.ranks, self.saved = step, SimpleNamespace(first=first), []

    def save(self, folder):
        self.saved.append(folder)


def record(step, **more):
    return {"step": step, "seconds": 2.0 * step, "progress": step / 8, "loss": 0.25, "learning_rate": 0.01, **more}


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_checkpoint_is_saved_when_the_last_one_is_older_than_asked_for(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("volseg.training.run.bookkeeping.time", clock)
    state, saved = State(), []
    with bookkeeping(tmp_path, state, lambda *_: None, 60.0) as keep:
        for step, seconds in enumerate((30, 29, 1, 1, 59, 1, 1, 200), 1):
            clock.now += seconds
            keep(record(step))
            saved.append(len(state.saved))
    # 60 s are not more than 60 s.
    assert saved == [0, 0, 0, 1, 1, 1, 2, 3]
    assert set(state.saved) == {tmp_path / "checkpoint"}


def test_progress_tells_step_loss_and_the_last_dice(tmp_path, caplog):
    told = []
    with caplog.at_level(logging.INFO), bookkeeping(tmp_path, State(), lambda *said: told.append(said), 60.0) as keep:
        keep(record(1))
        keep(record(2, foreground_dice=0.87654))
        keep(record(3, foreground_dice=None))
        keep(record(9))
    assert told == [
        ("train", 0.125, "step 1, loss 0.250"),
        ("train", 0.25, "step 2, loss 0.250, Dice 0.877"),
        ("train", 0.375, "step 3, loss 0.250, Dice 0.877"),
        ("train", 1.0, "step 9, loss 0.250, Dice 0.877"),
    ]
    assert caplog.messages == ["step 2: validation Dice 0.8765"]
    assert lines_of(tmp_path) == [
        record(1), record(2, foreground_dice=0.87654), record(3, foreground_dice=None), record(9)
    ]  # fmt: skip


def test_the_labels_that_patches_held_are_recorded_a_hundred_times_in_a_run(tmp_path):
    with bookkeeping(tmp_path, State(), lambda *_: None, 60.0, ["one", "two"]) as keep:
        for step in range(1, 513):
            keep({**record(step), "progress": step / 512, "held": [1.0, float(step % 8 == 0)]})
    lines = lines_of(tmp_path)
    said = {line["step"]: line["patches_with_label"] for line in lines if "patches_with_label" in line}
    assert len(said) == 100
    assert {one["one"] for one in said.values()} == {1.0}
    # 25 records are 128 steps, of which an eighth holds the second label.
    steps = [0, *said]
    counts = [one["two"] * (step - before) for (step, one), before in zip(said.items(), steps, strict=False)]
    assert sum(counts) == pytest.approx(64, abs=0.1)
    assert not any("held" in line for line in lines)


def test_other_ranks_write_nothing(tmp_path):
    state = State(first=False)
    with bookkeeping(tmp_path, state, lambda *_: pytest.fail("told"), 0.0) as keep:
        keep(record(1))
    assert not list(tmp_path.iterdir())
    assert not state.saved


def test_a_resumed_log_keeps_the_steps_of_its_checkpoint_and_no_later_ones(tmp_path):
    log = MetricsLog(tmp_path)
    for step in (1, 2, 3, 4):
        log.append(record(step))
    # Others can follow the run while the file is open.
    assert lines_of(tmp_path) == [record(step) for step in (1, 2, 3, 4)]
    log.close()
    log = MetricsLog(tmp_path, 2)
    assert lines_of(tmp_path) == [record(1), record(2)]
    log.append(record(3, loss=0.5))
    log.close()
    assert lines_of(tmp_path) == [record(1), record(2), record(3, loss=0.5)]
    MetricsLog(tmp_path).close()
    assert lines_of(tmp_path) == []


def test_the_events_have_the_numbers_of_every_step_once(tmp_path):
    log = MetricsLog(tmp_path)
    for step in (1, 2, 3):
        log.append(record(step, dice={"ball": 0.5}, foreground_dice=None))
    log.close()
    log = MetricsLog(tmp_path, 2)
    log.append(record(3, loss=0.75))
    log.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert sorted(events.Tags()["scalars"]) == ["learning_rate", "loss", "progress", "seconds"]
    assert [(one.step, one.value) for one in events.Scalars("loss")] == [(1, 0.25), (2, 0.25), (3, 0.75)]
    assert [one.value for one in events.Scalars("seconds")] == [2.0, 4.0, 6.0]


def test_a_full_disk_is_one_sentence(tmp_path):
    class Full:
        name = "metrics.jsonl"

        def write(self, _):
            raise OSError(28, "No space left on device")

    log = MetricsLog(tmp_path)
    whole, log._lines = log._lines, Full()
    with pytest.raises(
        ResourceError, match=r"Could not write .*metrics\.jsonl: No space left on device\. Free some space"
    ):
        log.append(record(1))
    log._lines = whole
    log.close()


def test_log_lines_go_to_the_run_and_only_while_it_runs(tmp_path):
    package = logging.getLogger("volseg")
    before = package.level
    with run_log(tmp_path, first=True):
        package.getChild("part").info("one %d", 1)
        package.getChild("part").debug("not this")
    package.getChild("part").warning("after")
    (line,) = (tmp_path / "log.txt").read_text().splitlines()
    assert line.endswith(" INFO one 1")
    with run_log(tmp_path, first=True):
        package.warning("more")
    assert [line.rpartition(" ")[2] for line in (tmp_path / "log.txt").read_text().splitlines()] == ["1", "more"]
    package.setLevel(before)


def test_other_ranks_let_only_warnings_through(tmp_path, caplog):
    package = logging.getLogger("volseg")
    before = package.level
    with caplog.at_level(logging.INFO, "volseg"):
        inside = package.level
        with run_log(tmp_path, first=False):
            package.info("hidden")
            package.warning("shown")
        assert package.level == inside
    assert caplog.messages == ["shown"]
    assert not list(tmp_path.iterdir())
    assert package.level == before
