"""A node in a process of its own: SIGKILL at any moment loses nothing, SIGTERM ends it cleanly."""

import random
import signal
import threading
import time

import pytest

from tests.node.orthanc import free_port
from tests.node.test_node import Archive
from tests.node.world import PATIENT, Process, send, settings, uids, wait_for, write_series, write_settings

# Each start of a process loads torch.
pytestmark = pytest.mark.slow


@pytest.fixture
def archive():
    found = Archive()
    found.start()
    yield found
    found.stop()


@pytest.fixture
def node(tmp_path, models, archive):
    """A node in a process, which is not started yet."""
    port = free_port()
    path = write_settings(
        tmp_path, settings(tmp_path, models[:1], port=port, archive_port=archive.port, quiet_seconds=3)
    )
    with Process(path) as process:
        process.port = port
        yield process


def test_a_killed_node_loses_nothing_it_acknowledged(node, archive, tmp_path):
    """Killed while it receives, and again while it works; what was not acknowledged is sent again, as a PACS does."""
    node.start()
    left = {path for number in range(3) for path in write_series(tmp_path, number, slices=12).glob("*.dcm")}
    total, chance = len(left), random.Random(5)

    def send_all() -> None:
        for path in sorted(left):
            if send(node.port, [path]) != [0]:
                return
            left.discard(path)

    thread = threading.Thread(target=send_all)
    thread.start()
    wait_for(lambda: len(left) < total - 5, pause=0.001)
    time.sleep(chance.uniform(0, 0.05))
    node.end(signal.SIGKILL)
    thread.join()
    acknowledged = total - len(left)
    assert 5 < acknowledged < total
    node.start()
    assert node.status()["instances"] in (acknowledged, acknowledged + 1)
    send_all()
    assert not left
    wait_for(lambda: "segmented by" in node.log.read_text())
    node.end(signal.SIGKILL)
    node.start()
    wait_for(lambda: node.status()["counts"]["deliveries"] == {"sent": 3}, 60, pause=0.5)
    assert node.end(signal.SIGTERM) == 0
    text = node.log.read_text()
    assert not [word for word in ("Secretperson", *PATIENT.values()) if word in text]
    found = node.status()
    assert found["instances"] == total
    assert [one["instances"] for one in found["series"]] == [12] * 3
    assert [one["late"] for one in found["jobs"]] == [0] * 3
    assert found["counts"]["jobs"] == {"done": 3}
    assert sorted({str(one.StudyInstanceUID) for one in archive.received}) == [uids(number)[0] for number in range(3)]
    assert len({str(one.SOPInstanceUID) for one in archive.received}) == 3


def test_a_stopped_node_says_so_and_its_store_is_free(node, tmp_path):
    node.start()
    assert send(node.port, sorted(write_series(tmp_path, 1).glob("*.dcm"))) == [0] * 6
    assert node.end(signal.SIGTERM) == 0
    text = node.log.read_text()
    assert "Stopped; what is not finished goes on at the next start" in text
    assert "Traceback" not in text
    node.start()
    assert node.end(signal.SIGINT) == 0
