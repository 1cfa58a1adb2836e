"""The queue: states, claims, and that every change survives the end of the process."""

import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from volseg.errors import InputError
from volseg.node.config import Retry
from volseg.node.queue import NAME, NewDelivery, NewJob, Queue

SERIES, STUDY = "1.2.3.4", "1.2.3"
JOB = NewJob("hippocampus", "ab" * 32, "dicom-seg")


@pytest.fixture
def queue(tmp_path):
    found = Queue(tmp_path, Retry(first_seconds=0.2, longest_seconds=0.2, attempts=3))
    yield found
    found.close()


def with_job(queue: Queue) -> dict:
    queue.add_instance(STUDY, SERIES, "1.2.3.4.1", 10)
    queue.decide(SERIES, "complete", [JOB])
    return queue.claim_job(0)


def test_an_object_is_recorded_once_and_its_series_receives(queue):
    assert queue.add_instance(STUDY, SERIES, "1.2.3.4.1", 10)
    assert not queue.add_instance(STUDY, SERIES, "1.2.3.4.1", 10)
    assert queue.add_instance(STUDY, SERIES, "1.2.3.4.2", 10)
    (series,) = queue.overview()["series"]
    assert (series["state"], series["instances"], series["study_uid"]) == ("receiving", 2, STUDY)
    assert queue.instances_of(SERIES) == {"1.2.3.4.1", "1.2.3.4.2"}


def test_a_series_is_complete_after_a_quiet_time_or_when_that_is_said(queue):
    queue.add_instance(STUDY, SERIES, "1.2.3.4.1", 10)
    assert queue.settled_series(60) == []
    assert queue.settled_series(0) == [SERIES]
    assert queue.say_complete(SERIES)
    assert queue.settled_series(60) == [SERIES]
    queue.add_instance(STUDY, SERIES, "1.2.3.4.2", 10)
    assert queue.settled_series(60) == [], "another object after the word takes it back"
    assert not queue.say_complete("9.9")


def test_a_job_exists_once_for_a_series_and_a_model(queue):
    with_job(queue)
    queue.decide(SERIES, "complete", [JOB, JOB._replace(sha256="cd" * 32)])
    assert [job["model_sha256"][:2] for job in queue.overview()["jobs"]] == ["ab", "cd"]


def test_a_job_waits_while_its_series_receives(queue):
    queue.add_instance(STUDY, SERIES, "1.2.3.4.1", 10)
    queue.decide(SERIES, "complete", [JOB])
    assert queue.claim_job(60) is None
    assert queue.claim_job(0)["series_uid"] == SERIES


def test_an_object_that_comes_while_its_series_is_segmented_starts_the_job_again(queue):
    number = with_job(queue)["id"]
    queue.add_instance(STUDY, SERIES, "1.2.3.4.2", 10)
    assert not queue.finish_job(number, [NewDelivery("a.dcm", "1.2.840", "2.25.1", "2.25.1.1")])
    assert queue.counts()["deliveries"] == {}
    assert queue.claim_job(60) is None, "it waits for the quiet time"
    assert queue.claim_job(0)["id"] == number
    assert queue.finish_job(number, [NewDelivery("a.dcm", "1.2.840", "2.25.1", "2.25.1.1")])


def test_an_object_that_comes_afterwards_is_late_and_the_series_is_not_segmented_again(queue):
    queue.finish_job(with_job(queue)["id"], [])
    queue.add_instance(STUDY, SERIES, "1.2.3.4.2", 10)
    (job,) = queue.overview()["jobs"]
    assert (job["state"], job["late"]) == ("done", 1)
    assert queue.overview()["series"][0]["state"] == "complete"


def test_a_failed_job_is_tried_again_with_another_object(queue):
    queue.end("jobs", with_job(queue)["id"], "failed", "a slice is missing")
    assert queue.claim_job(0) is None
    queue.add_instance(STUDY, SERIES, "1.2.3.4.2", 10)
    assert queue.claim_job(0)["attempts"] == 1


def test_a_start_begins_the_quiet_time_anew(queue):
    queue.add_instance(STUDY, SERIES, "1.2.3.4.1", 10)
    time.sleep(0.3)
    assert queue.settled_series(0.3) == [SERIES]
    queue.wait_again()
    assert queue.settled_series(0.3) == []


def test_claimed_work_is_claimed_again_only_after_its_delay_until_it_is_dead(queue):
    job = with_job(queue)
    assert (job["attempts"], queue.claim_job(0)) == (1, None)
    for attempt in (2, 3):
        time.sleep(0.21)
        assert queue.claim_job(0)["attempts"] == attempt
    time.sleep(0.21)
    assert queue.claim_job(0) is None
    (found,) = queue.overview()["jobs"]
    assert (found["state"], found["reason"]) == ("dead", "the process ended during each of 3 attempts")


def test_failures_wait_until_the_last_attempt_and_dead_work_can_be_revived(queue):
    number = with_job(queue)["id"]
    assert queue.retry("jobs", number, "away") == "waiting"
    for state in ("waiting", "dead"):
        time.sleep(0.21)
        assert queue.retry("jobs", queue.claim_job(0)["id"], "away") == state
    queue.learn("fact", "yes")
    assert queue.revive() == 1
    assert queue.fact("fact") is None
    assert queue.claim_job(0)["attempts"] == 1


def test_released_work_has_not_been_tried(queue):
    queue.release("jobs", with_job(queue)["id"])
    assert queue.claim_job(0)["attempts"] == 1


def test_results_of_a_repeated_job_are_sent_once(queue):
    number = with_job(queue)["id"]
    result = NewDelivery("a.dcm", "1.2.840", "2.25.1", "2.25.1.1")
    queue.finish_job(number, [result])
    queue.end("deliveries", queue.claim("deliveries")["id"], "sent")
    queue.finish_job(number, [result, result._replace(sop_uid="2.25.2")])
    assert [(one["sop_uid"], one["state"]) for one in queue.overview()["deliveries"]] == [
        ("2.25.1", "sent"), ("2.25.2", "waiting")
    ]  # fmt: skip
    assert queue.is_own("2.25.1.1")
    assert not queue.is_own(SERIES)


def test_a_refused_result_is_replaced_by_doing_its_job_again(queue):
    number = with_job(queue)["id"]
    labelmap, report, contours, binary = (
        NewDelivery(f"{k}.dcm", "1.2.840", f"2.25.{k}", f"2.25.{k}.1") for k in range(4)
    )
    queue.finish_job(number, [contours, labelmap, report])
    queue.end("deliveries", queue.claim("deliveries")["id"], "sent")
    queue.redo(queue.claim("deliveries")["id"], "no such class")
    assert queue.claim("deliveries") is None, "the report refers to what was refused"
    assert queue.claim_job(0)["id"] == number
    queue.finish_job(number, [contours, binary, report])
    assert {one["path"]: one["state"] for one in queue.overview()["deliveries"]} == {
        "2.dcm": "sent", "0.dcm": "replaced", "1.dcm": "waiting", "3.dcm": "waiting"
    }  # fmt: skip


def test_a_fetch_is_asked_for_once_until_it_is_done(queue):
    queue.add_fetch(STUDY, SERIES)
    queue.add_fetch(STUDY, SERIES)
    work = queue.claim("fetches")
    assert queue.claim("fetches") is None
    queue.end("fetches", work["id"], "done")
    queue.add_fetch(STUDY, SERIES)
    assert queue.claim("fetches")["attempts"] == 1


def test_only_series_with_nothing_left_to_do_are_removed(queue):
    number = with_job(queue)["id"]
    now = time.time() + 1
    assert queue.removable_series(now) == []
    queue.finish_job(number, [NewDelivery("a.dcm", "1.2.840", "2.25.1", "2.25.1.1")])
    assert queue.removable_series(now) == []
    queue.end("deliveries", queue.claim("deliveries")["id"], "sent")
    assert queue.removable_series(now) == [SERIES]
    assert queue.removable_series(now - 60) == []


def test_delays_grow_to_a_limit():
    retry = Retry(first_seconds=2, factor=3, longest_seconds=20)
    assert [retry.delay(n) for n in (1, 2, 3, 1000)] == [2, 6, 18, 20]


def test_a_queue_of_another_version_is_rejected(tmp_path, queue):
    with sqlite3.connect(tmp_path / NAME) as other:
        other.execute("PRAGMA user_version=99")
    other.close()
    with pytest.raises(InputError, match="has version 99, but this volseg reads 1"):
        Queue(tmp_path)


def test_a_file_that_is_no_queue_is_rejected(tmp_path):
    (tmp_path / NAME).write_bytes(b"something else" * 100)
    with pytest.raises(InputError, match="cannot be opened: file is not a database"):
        Queue(tmp_path)


PROGRAM = """
import sys
from pathlib import Path
from volseg.node.queue import Queue
queue = Queue(Path(sys.argv[1]))
for number in range(100000):
    queue.add_instance("1.2.3", "1.2.3.4", f"1.2.3.4.{number}", 10)
    print(number, flush=True)
"""


def test_what_was_recorded_before_a_kill_is_there(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) == 12:
            os.kill(process.pid, signal.SIGKILL)
            break
    said = [int(line) for line in process.stdout.read().splitlines()]
    process.stdout.close()
    process.wait()
    queue = Queue(tmp_path)
    try:
        (series,) = queue.overview()["series"]
        count = queue.instance_count()
    finally:
        queue.close()
    assert count >= max([12, *said]) + 1
    assert series["instances"] == count, "an object and its series are recorded together"


def test_a_series_without_a_rule_is_decided_again_and_failed_work_tried_again(tmp_path):
    queue = Queue(tmp_path)
    queue.add_instance("1.1", "1.2", "1.3", 9)
    queue.decide("1.2", "no rule")
    assert queue.settled_series(0) == []
    queue.reopen_series()
    assert queue.settled_series(0) == ["1.2"]
    queue.decide("1.2", "complete", [NewJob("model", "a" * 64, "dicom-seg")])
    assert not queue.is_segmented("1.2")
    job = queue.claim_job(0)
    queue.end("jobs", job["id"], "failed", "a slice was missing")
    assert queue.revive() == 1
    queue.finish_job(queue.claim_job(0)["id"], [])
    assert queue.is_segmented("1.2")
    queue.close()
