"""The SCP: what is acknowledged is on disk; nobody else may send; a full disk is said so."""

import errno
import os
import shutil
import socket
import warnings
from collections import namedtuple

import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless
from pynetdicom import AE, build_context
from pynetdicom.sop_class import Verification

from tests.data.io.dicom.writers import write
from tests.node.world import SENDER, configure, datasets, send, uids, wait_for, write_series
from volseg.errors import ConfigError, InputError, UsageError
from volseg.node import store as store_module
from volseg.node.receiver import Receiver
from volseg.node.store import Store

OUT_OF_RESOURCES = 0xA700


@pytest.fixture
def receiver(tmp_path, models, store, counters):
    found = Receiver(configure(tmp_path, models[:1]), store, counters)
    yield found
    found.close()


def files(store: Store) -> list[str]:
    return sorted(str(path.relative_to(store.folder)) for path in store.folder.rglob("*") if path.suffix != ".sqlite")


def test_acknowledged_objects_are_in_the_store_and_the_queue(receiver, store, tmp_path):
    folder = write_series(tmp_path, 1)
    paths = sorted(folder.glob("*.dcm"))
    assert send(receiver.port, paths) == [0] * 6
    study, series = uids(1)
    kept = sorted(store.series_folder(series).glob("*.dcm"))
    assert [path.name for path in kept] == [f"{series}.{k}.dcm" for k in range(1, 7)]
    assert store.queue.instances_of(series) == {path.stem for path in kept}
    assert store.queue.overview()["series"][0]["study_uid"] == study
    sent = {str(one.SOPInstanceUID): one for one in map(dcmread, paths)}
    for path in kept:
        assert dcmread(path) == sent[path.stem]
    assert list(store.incoming.iterdir()) == []


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_objects_are_kept_in_the_transfer_syntax_they_come_in(receiver, store, tmp_path, syntax):
    data = dcmread(write(datasets(1)[0], tmp_path / "one.dcm"))
    if syntax == RLELossless:
        data.compress(RLELossless, generate_instance_uid=False)
    else:
        data = dcmread(write(datasets(1)[0], tmp_path / "other.dcm", syntax=syntax))
    entity = AE(ae_title=SENDER)
    association = entity.associate(
        "127.0.0.1", receiver.port, contexts=[build_context(data.SOPClassUID, syntax)], ae_title="VOLSEG"
    )
    assert association.send_c_store(data).Status == 0
    association.release()
    (kept,) = store.series_folder(uids(1)[1]).glob("*.dcm")
    assert dcmread(kept).file_meta.TransferSyntaxUID == syntax
    assert (dcmread(kept).pixel_array == data.pixel_array).all()


def test_a_duplicate_is_acknowledged_and_kept_once(receiver, store, tmp_path):
    paths = sorted(write_series(tmp_path, 1).glob("*.dcm"))
    assert send(receiver.port, [*paths, *paths]) == [0] * 12
    (series,) = store.queue.overview()["series"]
    assert (series["instances"], store.queue.instance_count()) == (6, 6)


def test_an_echo_is_answered(receiver):
    entity = AE(ae_title=SENDER)
    entity.add_requested_context(Verification)
    association = entity.associate("127.0.0.1", receiver.port, ae_title="VOLSEG")
    assert association.send_c_echo().Status == 0
    association.release()


@pytest.mark.parametrize(("title", "called"), [("STRANGER", "VOLSEG"), (SENDER, "OTHER")])
def test_unknown_titles_are_rejected(receiver, store, tmp_path, title, called):
    paths = sorted(write_series(tmp_path, 1).glob("*.dcm"))
    assert send(receiver.port, paths, title, called) == []
    assert store.queue.instance_count() == 0


def test_unknown_addresses_are_not_let_in(tmp_path, models, store, counters, caplog):
    peers = [{"ae_title": SENDER, "address": "10.9.8.7"}]
    receiver = Receiver(configure(tmp_path, models[:1], peers=peers), store, counters)
    try:
        entity = AE(ae_title=SENDER)
        entity.add_requested_context(Verification)
        association = entity.associate("127.0.0.1", receiver.port, ae_title="VOLSEG")
        assert not association.is_established
    finally:
        receiver.close()
    assert counters.counts()["rejected_associations"] == 1
    assert "Closed a connection from 127.0.0.1, which is not in peers" in caplog.text


def test_silent_connections_hold_up_nobody(receiver, tmp_path):
    paths = sorted(write_series(tmp_path, 1).glob("*.dcm"))
    silent = [socket.create_connection(("127.0.0.1", receiver.port)) for _ in range(20)]
    try:
        assert send(receiver.port, paths) == [0] * 6
    finally:
        for one in silent:
            one.close()


def test_further_associations_than_allowed_are_rejected_for_now(tmp_path, models, store, counters):
    receiver = Receiver(configure(tmp_path, models[:1], limits={"associations": 1, "free_disk": 0}), store, counters)
    paths = sorted(write_series(tmp_path, 1).glob("*.dcm"))
    entity = AE(ae_title=SENDER)
    entity.add_requested_context(Verification)
    try:
        association = entity.associate("127.0.0.1", receiver.port, ae_title="VOLSEG")
        assert send(receiver.port, paths) == []
        association.release()
        assert wait_for(lambda: send(receiver.port, paths)) == [0] * 6
    finally:
        receiver.close()


def test_control_characters_in_a_uid_are_refused(receiver, store, tmp_path):
    (data,) = datasets(1, slices=1)
    with warnings.catch_warnings(action="ignore"):
        data.SeriesInstanceUID = "1.2\nERROR"
        path = write(data, tmp_path / "odd.dcm")
    assert send(receiver.port, [path]) == [0xC000]
    assert store.queue.instance_count() == 0


def test_received_series_without_their_queue_are_refused(receiver, store, tmp_path, models):
    send(receiver.port, sorted(write_series(tmp_path, 1).glob("*.dcm")))
    store.close()
    config = configure(tmp_path, models[:1])
    queue = config.store / "queue.sqlite"
    content = queue.read_bytes()
    queue.write_bytes(b"")
    with pytest.raises(InputError, match="is missing or empty"):
        Store(config)
    half = len(content) // 4096 // 2 * 4096
    queue.write_bytes(content[:4096] + bytes(range(256)) * 16 * (half // 4096) + content[4096 + half :])
    with pytest.raises(InputError, match="is damaged"):
        Store(config)
    queue.write_bytes(content)
    again = Store(config)
    assert again.queue.instance_count() == 6
    again.close()


def test_the_store_is_for_its_owner_alone(store):
    assert store.folder.stat().st_mode & 0o077 == 0


def test_an_almost_full_disk_is_answered_with_out_of_resources(receiver, store, tmp_path, monkeypatch):
    paths = sorted(write_series(tmp_path, 1).glob("*.dcm"))
    store.free_bytes = 10**6
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6 - 1))
    assert send(receiver.port, paths[:2]) == [OUT_OF_RESOURCES] * 2
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6))
    assert send(receiver.port, paths[:2]) == [0, 0]


@pytest.mark.parametrize("call", ["open", "write", "close", "fsync", "replace", "record"])
def test_a_full_disk_at_any_step_is_answered_and_leaves_nothing(receiver, store, tmp_path, monkeypatch, call):
    """Whatever fails for want of space, the peer hears it, nothing is recorded, and sending again works."""
    paths = sorted(write_series(tmp_path, 1).glob("*.dcm"))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        if call == "open":
            patched.setattr(store_module, "open", full, raising=False)
        elif call in ("write", "close"):
            patched.setattr(store_module, "open", lambda path, mode: Full(path, mode, call), raising=False)
        elif call == "record":
            patched.setattr(store.queue, "add_instance", full)
        else:
            patched.setattr(os, call, full)
        assert send(receiver.port, paths[:1]) == [OUT_OF_RESOURCES]
    assert store.queue.instance_count() == 0
    assert list(store.incoming.iterdir()) == []
    assert send(receiver.port, paths) == [0] * 6


class Full:
    """A file on a disk that becomes full at some call."""

    def __init__(self, path, mode, failing):
        self._file, self._failing = open(path, mode), failing  # noqa: SIM115

    def write(self, block):
        self._fail("write")
        return self._file.write(block)

    def close(self):
        self._file.close()
        self._fail("close")

    def _fail(self, call):
        if call == self._failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_object_without_uids_is_refused(receiver, store, tmp_path):
    data = datasets(1)[0]
    del data.SeriesInstanceUID
    path = write(data, tmp_path / "one.dcm")
    assert send(receiver.port, [path]) == [0xC000]
    assert store.queue.instance_count() == 0
    assert list(store.incoming.iterdir()) == []


def test_names_of_files_cannot_leave_the_store(store, tmp_path):
    landed = write(datasets(1, SeriesInstanceUID="../../outside")[0], store.incoming / "one.part")
    store.keep(landed)
    (kept,) = store.folder.rglob("*.dcm")
    assert kept.parent.parent == store.folder / "series"
    assert kept.parent.name.startswith("x")


def test_a_port_in_use_is_said_so(receiver, tmp_path, models, store, counters):
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {receiver.port}"):
        Receiver(configure(tmp_path, models[:1], port=receiver.port), store, counters)


def test_a_store_belongs_to_one_node(store, tmp_path, models):
    with pytest.raises(UsageError, match="Another node uses the store"):
        Store(configure(tmp_path, models[:1]))


def test_a_store_that_cannot_be_made_is_one_sentence(tmp_path, models):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"The store .*file/store cannot be used: Not a directory"):
        Store(configure(tmp_path, models[:1], store="file/store"))


def test_an_object_that_nobody_completes_is_removed(store):
    old, new = store.incoming / "old.part", store.incoming / "new.part"
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    store.clean(7)
    assert list(store.incoming.iterdir()) == [new]


def test_a_start_removes_what_a_killed_process_left(tmp_path, models):
    config = configure(tmp_path, models[:1])
    store = Store(config)
    series = uids(1)[1]
    paths = sorted(write_series(tmp_path, 1).glob("*.dcm"))
    for path in paths[:2]:
        landed = store.incoming / path.name
        shutil.copy(path, landed)
        store.keep(landed)
    shutil.copy(paths[2], store.series_folder(series) / "1.9.dcm")
    shutil.copy(paths[3], store.incoming / "half.part")
    store.close()
    again = Store(config)
    try:
        assert len(list(again.series_folder(series).iterdir())) == 2
        assert list(again.incoming.iterdir()) == []
    finally:
        again.close()
