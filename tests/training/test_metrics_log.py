"""The metrics of a run: lines and TensorBoard events, and what a failing disk makes of them."""

import errno
import json
import logging
import os

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from volseg.errors import ResourceError
from volseg.training.run import metrics_log
from volseg.training.run.folder import disk_errors
from volseg.training.run.metrics_log import MetricsLog


def record(step):
    return {"step": step, "seconds": 1.0, "progress": 0.5, "loss": 2.0 / step, "learning_rate": 0.1}


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_tensorboard_reads_the_events_and_drops_those_of_steps_that_are_repeated(tmp_path):
    for first, last in ((1, 4), (3, 5)):
        log = MetricsLog(tmp_path, step=first - 1)
        for step in range(first, last + 1):
            log.append({**record(step), "dice": {"ball": 0.5}})
        log.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {"seconds", "progress", "loss", "learning_rate"}
    found = [(one.step, one.value) for one in events.Scalars("loss")]
    assert found == [(step, pytest.approx(2.0 / step)) for step in range(1, 6)]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("when", ["opened", "written"])
def test_a_run_goes_on_without_events_after_one_warning(tmp_path, monkeypatch, caplog, when):
    fails = (metrics_log, "open_no_link") if when == "opened" else (metrics_log.RecordWriter, "write")
    monkeypatch.setattr(*fails, full_disk)
    with caplog.at_level(logging.WARNING, "volseg"):
        log = MetricsLog(tmp_path)
        log.append(record(1))
        log.append(record(2))
        log.close()
    assert ["without TensorBoard events" in message for message in caplog.messages] == [True]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_an_error_of_the_disk_is_one_sentence_that_says_how_to_go_on(tmp_path, number):
    with pytest.raises(ResourceError, match=f"plan.yaml.*{os.strerror(number)}.*--resume"), disk_errors(tmp_path):
        raise OSError(number, os.strerror(number), "plan.yaml")


def test_other_errors_of_the_system_stay_what_they_are(tmp_path):
    with pytest.raises(BrokenPipeError), disk_errors(tmp_path):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
