"""STOW-RS in, the words of an archive, /health and /metrics."""

import json
import re
import shutil
import socket
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from dicomweb_client.web import DICOMwebClient
from pydicom import dcmread

from tests.node.world import ask, configure, uids, wait_for, write_series
from volseg.errors import InputError
from volseg.node.dicomweb import WebArchive
from volseg.node.errors import DeliveryError
from volseg.node.http.inbox import Inbox
from volseg.node.http.monitor import Monitor
from volseg.node.http.multipart import parts_of
from volseg.node.http.server import Server

BOUNDARY = "multipart/related; type=application/dicom; boundary=xyz"


@pytest.fixture
def server(store, counters):
    found = Server(("127.0.0.1", 0), [Monitor(store, counters).answer, Inbox(store, counters, False).answer])
    yield found
    found.close()


@pytest.fixture
def url(server):
    return f"http://127.0.0.1:{server.port}"


def multipart(*contents: bytes) -> bytes:
    parts = [b"--xyz\r\nContent-Type: application/dicom\r\n\r\n" + one + b"\r\n" for one in contents]
    return b"".join(parts) + b"--xyz--\r\n"


@pytest.mark.parametrize("size", [1, 3, 7, 10**6])
@pytest.mark.parametrize("contents", [[b"one", b"", b"two\r\n--xy", b"\r\n"], [bytes(range(256)) * 5], []])
def test_parts_are_found_whatever_the_blocks(size, contents):
    for prefix in (b"", b"to be ignored\r\n"):
        body = prefix + multipart(*contents)
        blocks = (body[start : start + size] for start in range(0, len(body), size))
        assert [b"".join(part) for part in parts_of(blocks, BOUNDARY)] == contents


@pytest.mark.parametrize("end", [1, 20, 50, -12])
def test_a_multipart_body_that_ends_early_is_an_error(end):
    with pytest.raises(InputError, match="ends within a part"):
        [b"".join(part) for part in parts_of(iter([multipart(b"content")[:end]]), BOUNDARY)]


def test_dicomweb_client_stores_a_series(url, store, tmp_path):
    """Small requests have a length, large ones are chunked."""
    paths = sorted(write_series(tmp_path, 1).glob("*.dcm"))
    for chunk in (10**6, 1000):
        answer = DICOMwebClient(url, chunk_size=chunk).store_instances([dcmread(path) for path in paths])
        assert len(answer.ReferencedSOPSequence) == 6
        assert "FailedSOPSequence" not in answer
    assert store.queue.instance_count() == 6
    kept = {str(one.SOPInstanceUID): one for one in map(dcmread, store.series_folder(uids(1)[1]).glob("*.dcm"))}
    assert all(kept[str(one.SOPInstanceUID)] == one for one in map(dcmread, paths))


def test_an_object_of_another_study_or_none_is_named_and_the_rest_is_kept(url, store, tmp_path):
    good, other = (min(write_series(tmp_path, number).glob("*.dcm")).read_bytes() for number in (1, 2))
    study, series = uids(1)
    status, body = ask(f"{url}/studies/{study}", multipart(good, other, b"nothing"), Content_Type=BOUNDARY)
    answer = json.loads(body)
    assert status == 202
    assert len(answer["00081199"]["Value"]) == 1
    failed = answer["00081198"]["Value"]
    assert [one["00081197"]["Value"] for one in failed] == [[0xC000], [0xC000]]
    assert failed[0]["00081155"]["Value"] == [f"{uids(2)[1]}.1"]
    assert store.queue.instances_of(series) == {f"{series}.1"}
    assert list(store.incoming.iterdir()) == []


def test_a_full_disk_is_said_so(url, store, tmp_path, monkeypatch):
    content = min(write_series(tmp_path, 1).glob("*.dcm")).read_bytes()
    store.free_bytes = 10
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("usage", "free")(9))
    status, body = ask(f"{url}/studies", multipart(content), Content_Type=BOUNDARY)
    assert status == 503
    assert json.loads(body)["00081198"]["Value"][0]["00081197"]["Value"] == [0xA700]
    assert store.queue.instance_count() == 0


def test_a_body_that_is_cut_off_is_not_acknowledged(server, store, tmp_path):
    body = multipart(min(write_series(tmp_path, 1).glob("*.dcm")).read_bytes())
    head = f"POST /studies HTTP/1.1\r\nHost: x\r\nContent-Type: {BOUNDARY}\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + body[:-40])
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(1000)
    assert answer.startswith(b"HTTP/1.1 400")
    assert store.queue.instance_count() == 0
    assert list(store.incoming.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/nothing", None, 404), ("/studies", b"", 400), ("/studies/../..", b"", 404),
        ("/studies/1.2/series/3.4/fetch", b"", 400), ("/series/1.2/complete", b"", 404),
    ],
)  # fmt: skip
def test_other_requests_are_refused(url, path, body, status):
    assert ask(url + path, body)[0] == status


def test_a_server_of_ipv6(store, counters):
    server = Server(("::1", 0), [Monitor(store, counters).answer])
    try:
        assert ask(f"http://[::1]:{server.port}/health")[0] == 200
    finally:
        server.close()


class Elsewhere(BaseHTTPRequestHandler):
    """Sends every request on to another host, and counts those that follow."""

    followed = 0

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).followed += self.path == "/elsewhere"
        self.send_response(307)
        self.send_header("Location", f"http://localhost:{self.server.server_port}/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def test_results_follow_no_redirection(tmp_path, models):
    """An archive that names another host must not make the node send patient data there."""
    with HTTPServer(("127.0.0.1", 0), Elsewhere) as archive:
        threading.Thread(target=archive.serve_forever, daemon=True).start()
        web = {"dicomweb": {"url": f"http://127.0.0.1:{archive.server_port}"}}
        path = next(write_series(tmp_path, 1).glob("*.dcm"))
        with pytest.raises(DeliveryError, match="HTTP status 307"):
            WebArchive(configure(tmp_path, models[:1], archive=web)).send(str(path))
        archive.shutdown()
    assert Elsewhere.followed == 0


def test_pages_in_a_browser_may_not_ask(url):
    assert ask(f"{url}/retry", b"")[0] == 200
    assert ask(f"{url}/retry", b"", Origin="http://evil.example")[0] == 403


def test_many_slow_connections_use_few_threads(server, url):
    before = threading.active_count()
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(server.most_connections + 20)]
    try:
        wait_for(lambda: threading.active_count() > before + server.most_connections - 5)
        assert threading.active_count() <= before + server.most_connections
    finally:
        for one in slow:
            one.close()
    wait_for(lambda: threading.active_count() <= before + 5)
    assert ask(f"{url}/health")[0] == 200


def test_only_listed_addresses_may_ask(store, counters):
    server = Server(("127.0.0.1", 0), [Inbox(store, counters, False).answer], lambda address: address != "127.0.0.1")
    try:
        with pytest.raises(OSError):
            ask(f"http://127.0.0.1:{server.port}/retry", b"")
    finally:
        server.close()


def test_an_archive_can_say_that_a_series_is_complete(url, store, tmp_path):
    path = min(write_series(tmp_path, 1).glob("*.dcm"))
    ask(f"{url}/studies", multipart(path.read_bytes()), Content_Type=BOUNDARY)
    assert store.queue.settled_series(60) == []
    assert ask(f"{url}/series/{uids(1)[1]}/complete", b"")[0] == 202
    assert store.queue.settled_series(60) == [uids(1)[1]]


def test_health_and_metrics(url, store, counters):
    assert ask(f"{url}/health") == (200, b'{"ok": true, "problems": []}')
    store.queue.add_instance("1.2", "1.2.3", "1.2.3.4", 5)
    counters.add("rejected_associations")
    lines = ask(f"{url}/metrics")[1].decode().splitlines()
    assert "volseg_node_instances 1" in lines
    assert 'volseg_node_series{state="receiving"} 1' in lines
    assert "volseg_node_rejected_associations_total 1" in lines
    assert "# TYPE volseg_node_rejected_associations_total counter" in lines
    ended = threading.Thread(target=int)
    ended.start()
    ended.join()
    counters.watch("sending", ended)
    status, body = ask(f"{url}/health")
    assert (status, json.loads(body)["problems"]) == (503, ["The sending has stopped."])


def test_metrics_have_the_form_that_prometheus_reads(store, counters):
    store.queue.add_instance("1.2", "1.2.3", "1.2.3.4", 5)
    name = r"volseg_node_[a-z_]+"
    text = Monitor(store, counters).metrics()
    assert all(
        re.fullmatch(rf'# (HELP|TYPE) {name} .+|{name}({{state="[a-z ]+"}})? \d+', line) for line in text.splitlines()
    )
    assert text.endswith("\n")
