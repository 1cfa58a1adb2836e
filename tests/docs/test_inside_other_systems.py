"""The page "Inside other systems": its watcher waits for whole files, and its script for Orthanc sends scans alone."""

import json
import threading
import time
import urllib.request
from types import SimpleNamespace

import pytest

from tests.data.images import ramp
from tests.data.io.dicom.writers import classic, write_all
from tests.docs.pages import ROOT, blocks_of
from tests.node.orthanc import PROGRAM, Orthanc, free_port

PAGE = ROOT / "docs" / "how-to" / "inside-other-systems.md"
PATIENCE_SECONDS = 30


def block(language, word):
    """The only block of a language with a word in it."""
    (found,) = [one.text for one in blocks_of(PAGE) if one.language == language and word in one.text]
    return found


@pytest.fixture
def watching(tmp_path):
    """The watcher of the page in a thread, with a model that only notes what it is given; stopped at the end."""
    taken = []

    def predict(path, segmenter, results, overwrite):
        taken.append((path.name, sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())))
        return [SimpleNamespace(error="torn" if "torn" in path.name else None)]

    namespace = {"volseg": SimpleNamespace(predict=predict, VolsegError=ValueError)}
    exec(block("python", "def watch").partition("\n\n\ninbox,")[0], namespace)
    inbox, outbox, ended = tmp_path / "in", tmp_path / "out", threading.Event()
    inbox.mkdir()
    options = {"quiet": 0.5, "pause": 0.05, "stop": ended.is_set}
    thread = threading.Thread(target=namespace["watch"], args=(inbox, outbox, None), kwargs=options)
    thread.start()
    yield inbox, outbox, taken
    ended.set()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


def wait_until(condition):
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_watcher_takes_whole_files_only_and_moves_them(watching):
    inbox, outbox, taken = watching
    (inbox / "series").mkdir()
    (inbox / ".hidden").touch()
    (inbox / "torn.nii").touch()
    for number in range(8):
        (inbox / "series" / f"{number}.dcm").write_bytes(bytes(10))
        with open(inbox / "scan.nii", "ab") as file:
            file.write(bytes(10))
        time.sleep(0.15)
    wait_until(lambda: [path.name for path in inbox.iterdir()] == [".hidden"])
    assert sorted(name for name, _ in taken) == ["scan.nii", "series", "torn.nii"]
    assert dict(taken)["scan.nii"] == 80
    assert dict(taken)["series"] == 80
    wait_until(lambda: len(list((outbox / "failed").iterdir())) == 2)
    moved = sorted(path.name.partition("_")[2] for path in outbox.rglob("*") if path.parent.name in ("done", "failed"))
    assert moved == ["scan.nii", "series", "torn.nii", "torn.nii.txt"]


@pytest.fixture
def receiver(monkeypatch):
    """What a node would receive: (Modality, SOPInstanceUID), in a list, and its port."""
    pynetdicom = pytest.importorskip("pynetdicom")
    # A node that ran in this process before receives into files of its own.
    monkeypatch.setattr(pynetdicom._config, "STORE_RECV_CHUNKED_DATASET", False)
    received = []

    def store(event):
        data = event.dataset
        received.append((data.Modality, str(data.SOPInstanceUID)))
        return 0x0000

    entity = pynetdicom.AE(ae_title="VOLSEG")
    entity.supported_contexts = pynetdicom.AllStoragePresentationContexts
    port = free_port()
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(pynetdicom.evt.EVT_C_STORE, store)])
    yield received, port
    server.shutdown()


@pytest.fixture
def orthanc(tmp_path, receiver):
    """A real Orthanc with the script of the page; gives the URL of its REST interface."""
    if not PROGRAM:
        pytest.skip("the program Orthanc is not installed (Debian package orthanc)")
    (tmp_path / "to-volseg.lua").write_text(block("lua", "OnStableSeries"))
    peer = ("VOLSEG", receiver[1])
    options = json.loads(block("json", "LuaScripts")) | {
        "LuaScripts": [str(tmp_path / "to-volseg.lua")],
        # The page has the port that a node listens on by default.
        "DicomModalities": {"volseg": [peer[0], "127.0.0.1", peer[1]]},
        "StableAge": 1,
    }
    server = Orthanc(tmp_path / "orthanc", peer, **options)
    try:
        server.start()
        yield f"http://127.0.0.1:{server.http_port}"
    finally:
        server.stop()


def test_orthanc_sends_scans_and_not_results(tmp_path, receiver, orthanc):
    received, _ = receiver
    scan = classic(ramp(), PatientID="p")
    result = classic(
        ramp((3, 4, 1)), PatientID="p", Modality="SR", SeriesInstanceUID="1.2.3.5", SOPInstanceUID="1.2.9.9"
    )
    # The result first: when the scan has arrived, it would have been sent.
    for file in [*write_all(tmp_path / "sr", result).iterdir(), *write_all(tmp_path / "mr", scan).iterdir()]:
        with urllib.request.urlopen(urllib.request.Request(f"{orthanc}/instances", file.read_bytes()), timeout=10):
            pass
    wait_until(lambda: len(received) >= 5)
    time.sleep(1)
    assert sorted(received) == [("MR", f"1.2.3.4.{k}") for k in range(1, 6)]
