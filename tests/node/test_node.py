"""A whole node in this process: in by C-STORE, out to an archive; no patient data but in DICOM files."""

import json
import logging
import shutil
import sys
import threading
from io import BytesIO

import pytest
from pydicom import dcmread
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification
from typer.testing import CliRunner

from tests.data.io.dicom.writers import write
from tests.node.orthanc import free_port
from tests.node.world import (
    LABELMAP_SEG,
    PATIENT,
    SEG,
    ask,
    configure,
    datasets,
    send,
    uids,
    wait_for,
    write_series,
)
from volseg.cli import app
from volseg.files import sha256_of
from volseg.node import worker as worker_module
from volseg.node.queue import NewJob
from volseg.node.service import Node
from volseg.node.worker import Worker, reason_of, write_results


class Archive:
    """An SCP that keeps the UIDs of what it is sent; `status` is its answer."""

    def __init__(self, classes=(SEG,)):
        self.port, self.received, self.status, self.classes = free_port(), [], 0, classes
        self._server = None

    def start(self):
        entity = AE(ae_title="ORTHANC")
        entity.add_supported_context(Verification)
        for one in self.classes:
            entity.add_supported_context(one)
        self._server = entity.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
        )

    def stop(self):
        if self._server:
            self._server.shutdown()
            self._server = None

    def _store(self, event):
        # A file, where a node in this process has asked pynetdicom for files.
        landing = event.request._dataset_file
        if landing:
            landing.close()
        self.received.append(dcmread(landing.name if landing else BytesIO(event.encoded_dataset())))
        return self.status


@pytest.fixture
def archive():
    found = Archive()
    found.start()
    yield found
    found.stop()


def states(node, kind):
    return node.store.queue.counts()[kind]


def test_a_series_comes_back_as_one_result_of_each_model(tmp_path, models, archive):
    with Node(configure(tmp_path, models, archive_port=archive.port)) as node:
        paths = sorted(write_series(tmp_path, 1).glob("*.dcm"))
        assert send(node.receiver.port, paths) == [0] * 6
        wait_for(lambda: states(node, "deliveries") == {"sent": 2})
        assert send(node.receiver.port, paths) == [0] * 6
        node.store.queue.decide(uids(1)[1], "receiving")
        wait_for(lambda: states(node, "series") == {"complete": 1})
        assert states(node, "jobs") == {"done": 2}
    assert len(archive.received) == 2
    assert len({one.SOPInstanceUID for one in archive.received}) == 2
    assert {str(one.StudyInstanceUID) for one in archive.received} == {uids(1)[0]}


def test_a_series_of_no_rule_and_an_object_that_is_no_scan_are_kept_and_not_segmented(tmp_path, models, archive):
    with Node(configure(tmp_path, models[:1], archive_port=archive.port)) as node:
        send(node.receiver.port, sorted(write_series(tmp_path, 1, Modality="OT").glob("*.dcm")))
        send(node.receiver.port, sorted(write_series(tmp_path, 2, slices=1, SOPClassUID=SEG).glob("*.dcm")))
        wait_for(lambda: states(node, "series") == {"no rule": 2})
        assert states(node, "jobs") == {}


def test_results_that_are_sent_back_are_not_segmented(tmp_path, models, archive):
    with Node(configure(tmp_path, models[:1], archive_port=archive.port)) as node:
        queue = node.store.queue
        send(node.receiver.port, sorted(write_series(tmp_path, 1).glob("*.dcm")))
        wait_for(lambda: states(node, "deliveries") == {"sent": 1})
        own = queue.overview()["deliveries"][0]["path"]
        send(node.receiver.port, [own])
        wait_for(lambda: states(node, "series") == {"complete": 1, "own": 1})
        assert states(node, "jobs") == {"done": 1}


def test_a_series_that_cannot_be_segmented_fails_at_once_with_the_reason(tmp_path, models, archive):
    with Node(configure(tmp_path, models[:1], archive_port=archive.port)) as node:
        send(node.receiver.port, sorted(write_series(tmp_path, 1, PixelSpacing="").glob("*.dcm")))
        wait_for(lambda: states(node, "jobs") == {"failed": 1})
        (job,) = node.store.queue.overview()["jobs"]
    assert job["attempts"] == 1
    assert "PixelSpacing" in job["reason"]


def test_an_archive_that_is_away_gets_the_result_later(tmp_path, models, archive):
    archive.stop()
    with Node(configure(tmp_path, models[:1], archive_port=archive.port)) as node:
        queue = node.store.queue
        send(node.receiver.port, sorted(write_series(tmp_path, 1).glob("*.dcm")))
        wait_for(lambda: queue.counts()["deliveries"] and queue.overview()["deliveries"][0]["attempts"] >= 2)
        (delivery,) = queue.overview()["deliveries"]
        assert delivery["state"] in ("waiting", "running")
        assert delivery["reason"] == "the archive cannot be reached"
        archive.start()
        wait_for(lambda: states(node, "deliveries") == {"sent": 1})
    assert len(archive.received) == 1


def test_a_result_that_is_refused_is_dead_after_the_last_attempt_and_can_be_revived(tmp_path, models, archive):
    archive.status = 0xA700
    retry = {"first_seconds": 0.05, "attempts": 2}
    config = configure(tmp_path, models[:1], archive_port=archive.port, retry=retry, http_port=0, monitor_port=0)
    with Node(config) as node:
        send(node.receiver.port, sorted(write_series(tmp_path, 1).glob("*.dcm")))
        wait_for(lambda: states(node, "deliveries") == {"dead": 1})
        (delivery,) = node.store.queue.overview()["deliveries"]
        assert (delivery["attempts"], delivery["reason"]) == (2, "the archive refused the object with status A700")
        status, body = ask(f"http://127.0.0.1:{node.monitor.port}/health")
        assert (status, json.loads(body)["ok"]) == (503, False)
        archive.status = 0xB000
        assert ask(f"http://127.0.0.1:{node.web.port}/retry", b"")[0] == 200
        wait_for(lambda: states(node, "deliveries") == {"sent": 1})


def test_a_labelmap_that_the_archive_does_not_take_is_written_as_binary(tmp_path, models, archive, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "volseg")
    made = []

    def write(segmenter, series, target, formats, progress):
        made.append(formats)
        files = write_results(segmenter, series, target, ["stub"], progress)
        if "stub:labelmap" in formats:
            data = dcmread(files[0])
            data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = LABELMAP_SEG
            data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"{data.SOPInstanceUID}.2"
            data.save_as(files[0])
        return files

    monkeypatch.setattr(worker_module, "write_results", write)
    config = configure(tmp_path, models[:1], archive_port=archive.port)
    rules = tuple(rule.model_copy(update={"to": ("stub:labelmap",)}) for rule in config.rules)
    with Node(config.model_copy(update={"rules": rules})) as node:
        send(node.receiver.port, sorted(write_series(tmp_path, 1).glob("*.dcm")))
        wait_for(lambda: states(node, "deliveries") == {"replaced": 1, "sent": 1})
        send(node.receiver.port, sorted(write_series(tmp_path, 2).glob("*.dcm")))
        wait_for(lambda: states(node, "deliveries") == {"replaced": 1, "sent": 2})
        first = node.store.queue.overview()
    assert made == [["stub:labelmap"], ["stub"], ["stub"]]
    assert [str(one.SOPClassUID) for one in archive.received] == [SEG, SEG]
    said = "the archive takes no LABELMAP segmentations, so BINARY is written"
    assert first["deliveries"][0]["reason"] == first["jobs"][0]["reason"] == said
    assert said in caplog.text


def test_a_stopped_job_begins_anew_at_the_next_start(tmp_path, models, store):
    stop = threading.Event()
    config = configure(tmp_path, models[:1])
    worker = Worker(config, store, {str(models[0]): sha256_of(models[0])}, stop)
    for path in sorted(write_series(tmp_path, 1).glob("*.dcm")):
        landed = store.incoming / path.name
        landed.write_bytes(path.read_bytes())
        store.keep(landed)
    store.queue.say_complete(uids(1)[1])
    assert worker.settle()
    stop.set()
    assert worker.step()
    (job,) = store.queue.overview()["jobs"]
    assert (job["state"], job["attempts"]) == ("waiting", 0)
    stop.clear()
    assert worker.step()
    assert store.queue.counts()["jobs"] == {"done": 1}


def test_repeated_results_are_the_same_bytes(tmp_path, models, store):
    series = write_series(tmp_path, 1)
    segmenter = Worker(configure(tmp_path, models[:1]), store, {}, threading.Event())._segmenter(
        str(models[0]), sha256_of(models[0])
    )
    first, second = (write_results(segmenter, series, tmp_path / name, ["stub"])[0] for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_an_unexpected_error_is_tried_again_and_its_text_is_not_kept(tmp_path, models, archive, monkeypatch):
    failures = iter([ValueError("Doe^Secretperson"), MemoryError()])

    def write(*arguments):
        for failure in failures:
            raise failure
        return write_results(*arguments)

    monkeypatch.setattr(worker_module, "write_results", write)
    with Node(configure(tmp_path, models[:1], archive_port=archive.port)) as node:
        send(node.receiver.port, sorted(write_series(tmp_path, 1).glob("*.dcm")))
        wait_for(lambda: states(node, "jobs") == {"done": 1})
        assert node.store.queue.overview()["jobs"][0]["attempts"] == 3
    assert reason_of(ValueError("Doe^Secretperson")) == "unexpected ValueError"


def test_finished_series_are_removed_and_stay_known(tmp_path, models, archive):
    with Node(configure(tmp_path, models[:1], archive_port=archive.port)) as node:
        paths = sorted(write_series(tmp_path, 1).glob("*.dcm"))
        send(node.receiver.port, paths)
        wait_for(lambda: states(node, "deliveries") == {"sent": 1})
        node.store.clean(0)
        assert states(node, "series") == {"removed": 1}
        assert list(node.store.folder.rglob("*.dcm")) == []
        assert send(node.receiver.port, paths) == [0] * 6
        assert states(node, "series") == {"removed": 1}


def test_no_patient_data_is_in_logs_states_metrics_or_names(tmp_path, models, archive, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    config = configure(tmp_path, models[:1], archive_port=archive.port, http_port=0, monitor_port=0)
    with Node(config) as node:
        send(node.receiver.port, sorted(write_series(tmp_path, 1).glob("*.dcm")))
        send(node.receiver.port, sorted(write_series(tmp_path, 2, PixelSpacing="").glob("*.dcm")))
        send(node.receiver.port, sorted(write_series(tmp_path, 3, Modality="OT").glob("*.dcm")))
        wait_for(lambda: states(node, "deliveries") == {"sent": 1} and states(node, "jobs") == {"done": 1, "failed": 1})
        found = [ask(f"http://127.0.0.1:{node.monitor.port}/{name}")[1].decode() for name in ("health", "metrics")]
    table = CliRunner().invoke(app, ["node", "status", "--config", str(tmp_path / "node.yaml")])
    document = CliRunner().invoke(app, ["node", "status", "--config", str(tmp_path / "node.yaml"), "--json"])
    assert table.exit_code == document.exit_code == 0
    assert json.loads(document.stdout)["counts"]["jobs"] == {"done": 1, "failed": 1}
    found += [table.output, document.output, *(str(path) for path in node.store.folder.rglob("*"))]
    # At the level that is shown by default; pynetdicom and requests are not shown at all.
    found += [record.getMessage() for record in caplog.records if record.name.startswith("volseg")]
    found += capsys.readouterr()
    kept = {path for path in node.store.folder.rglob("*") if path.is_file() and path.suffix != ".dcm"}
    found += [path.read_bytes().decode("latin-1") for path in kept]
    for word in ("Secretperson", *list(PATIENT.values())[1:]):
        assert not [text for text in found if word in text], word
    assert str(archive.received[0].PatientName) == PATIENT["PatientName"]


def test_jobs_of_models_that_left_the_rules_are_still_done(tmp_path, models, store):
    """A job names its own model, so that a changed configuration loses nothing that was acknowledged."""
    series = uids(1)[1]
    for path in write_series(tmp_path, 1).glob("*.dcm"):
        landed = store.incoming / path.name
        landed.write_bytes(path.read_bytes())
        store.keep(landed)
    store.queue.decide(series, "complete", [NewJob(str(models[1]), sha256_of(models[1]), "stub")])
    store.queue.say_complete(series)
    assert Worker(configure(tmp_path, models[:1]), store, {}, threading.Event()).step()
    assert store.queue.counts()["jobs"] == {"done": 1}


def test_a_model_that_is_away_or_replaced_is_tried_again_and_never_mixed_up(tmp_path, models, archive):
    model = tmp_path / "own.safetensors"
    shutil.copy(models[0], model)
    config = configure(tmp_path, [model], archive_port=archive.port)
    with Node(config) as node:
        for other, message in ((None, "There is no model"), (models[1], "another file than the one this job is for")):
            model.unlink(missing_ok=True)
            if other:
                shutil.copy(other, model)
            else:
                send(node.receiver.port, sorted(write_series(tmp_path, 1).glob("*.dcm")))
            wait_for(lambda m=message: any(m in job["reason"] for job in node.store.queue.overview()["jobs"]))
        assert "done" not in states(node, "jobs")
    with Node(config) as node:
        wait_for(lambda: states(node, "deliveries") == {"sent": 1})
        assert node.store.queue.overview()["jobs"][0]["model_sha256"] == sha256_of(models[1])


def test_a_series_whose_files_are_gone_holds_up_no_other(tmp_path, models, archive):
    # Quiet for so long that on a busy machine the files are gone before the node looks at them.
    with Node(configure(tmp_path, models[:1], archive_port=archive.port, quiet_seconds=3)) as node:
        send(node.receiver.port, sorted(write_series(tmp_path, 1).glob("*.dcm")))
        shutil.rmtree(node.store.series_folder(uids(1)[1]))
        send(node.receiver.port, sorted(write_series(tmp_path, 2).glob("*.dcm")))
        wait_for(lambda: states(node, "jobs") == {"done": 1})
        assert states(node, "series") == {"complete": 1, "no rule": 1}


def test_a_series_of_no_rule_is_looked_at_again_when_more_of_it_comes(tmp_path, models, archive):
    with Node(configure(tmp_path, models[:1], archive_port=archive.port)) as node:
        report = datasets(1, slices=1, SOPClassUID=SEG)[0]
        report.SOPInstanceUID = f"{uids(1)[1]}.99"
        send(node.receiver.port, [write(report, tmp_path / "report.dcm")])
        wait_for(lambda: states(node, "series") == {"no rule": 1})
        send(node.receiver.port, sorted(write_series(tmp_path, 1).glob("*.dcm")))
        wait_for(lambda: states(node, "series") == {"complete": 1})


def test_health_tells_of_a_step_that_fails(tmp_path, models, archive, monkeypatch):
    with Node(configure(tmp_path, models[:1], archive_port=archive.port, monitor_port=0)) as node:
        url = f"http://127.0.0.1:{node.monitor.port}/health"
        with monkeypatch.context() as patched:
            patched.setattr(node.store.queue, "settled_series", lambda _: 1 / 0)
            wait_for(lambda: ask(url)[0] == 503)
            assert b"The last step of receiving failed" in ask(url)[1]
        wait_for(lambda: ask(url)[0] == 200)


def test_status_without_a_queue_and_an_unknown_action_are_one_sentence(tmp_path, models):
    configure(tmp_path, models[:1])
    for words, message in (
        (["status"], "no node has run with this configuration yet"),
        (["stop"], "volseg node has no action 'stop'"),
    ):
        done = CliRunner().invoke(app, ["node", *words, "--config", str(tmp_path / "node.yaml")])
        assert done.exit_code == 2
        assert message in " ".join(done.output.split())


def test_a_missing_extra_is_one_sentence(tmp_path, models, monkeypatch):
    configure(tmp_path, models[:1])
    monkeypatch.delitem(sys.modules, "volseg.node.service", raising=False)
    monkeypatch.delitem(sys.modules, "volseg.node.receiver", raising=False)
    monkeypatch.setitem(sys.modules, "pynetdicom", None)
    done = CliRunner().invoke(app, ["node", "--config", str(tmp_path / "node.yaml")])
    assert done.exit_code == 1
    assert "pip install 'volseg[node]'" in " ".join(done.output.split())
    assert "Traceback" not in done.output
