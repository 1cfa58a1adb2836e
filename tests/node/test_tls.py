"""TLS: certificates on both sides, and no connection without."""

import shutil
import socket
import ssl
import subprocess

import pytest
import requests

from tests.node.world import configure, send, uids, wait_for, write_series
from volseg.errors import ConfigError
from volseg.node.receiver import Receiver, client_context, server_context
from volseg.node.service import Node

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, which makes certificates, is missing")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A self-signed certificate for loopback, which is its own authority, and another one."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("own", "other"):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
             "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", folder / f"{name}.key",
             "-out", folder / f"{name}.pem"],
            check=True, capture_output=True,
        )  # fmt: skip
    return folder


def tls(folder, name="own"):
    return {
        "certificate": str(folder / f"{name}.pem"),
        "key": str(folder / f"{name}.key"),
        "ca": str(folder / "own.pem"),
    }


def test_objects_come_in_by_tls_from_those_with_a_certificate(tmp_path, models, store, counters, certificates):
    config = configure(tmp_path, models[:1], tls=tls(certificates))
    receiver = Receiver(config, store, counters)
    paths = sorted(write_series(tmp_path, 1).glob("*.dcm"))
    try:
        known = (client_context(config.tls), "127.0.0.1")
        with socket.create_connection(("127.0.0.1", receiver.port)):
            # A connection without a handshake holds up nobody.
            assert send(receiver.port, paths[:2], tls_args=known) == [0, 0]
        assert send(receiver.port, paths[2:3]) == []
        stranger = ssl.create_default_context(cafile=certificates / "own.pem")
        stranger.load_cert_chain(certificates / "other.pem", certificates / "other.key")
        assert send(receiver.port, paths[2:3], tls_args=(stranger, "127.0.0.1")) == []
    finally:
        receiver.close()
    assert store.queue.instance_count() == 2


def test_results_go_out_by_tls_and_http_has_it_too(tmp_path, models, certificates):
    """The archive is a second node, which keeps what it is sent."""
    (tmp_path / "two").mkdir()
    peers = [{"ae_title": "VOLSEG", "address": "127.0.0.1"}]
    second = configure(tmp_path / "two", models[:1], ae_title="ORTHANC", tls=tls(certificates), peers=peers)
    with Node(second) as archive:
        dimse = {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": archive.receiver.port, "tls": True}
        config = configure(tmp_path, models[:1], archive={"dimse": dimse}, tls=tls(certificates), http_port=0)
        with Node(config) as node:
            url = f"https://127.0.0.1:{node.web.port}"
            with requests.Session() as session:
                session.trust_env, session.verify = False, str(certificates / "own.pem")
                session.cert = (str(certificates / "own.pem"), str(certificates / "own.key"))
                assert session.post(f"{url}/retry").status_code == 200
                session.cert = None
                with pytest.raises(requests.RequestException):
                    session.post(f"{url}/retry")
            send(
                node.receiver.port,
                sorted(write_series(tmp_path, 1).glob("*.dcm")),
                tls_args=(client_context(config.tls), "127.0.0.1"),
            )
            wait_for(lambda: node.store.queue.counts()["deliveries"] == {"sent": 1})
        assert [one["study_uid"] for one in archive.store.queue.overview()["series"]] == [uids(1)[0]]


def test_certificates_that_cannot_be_used_are_one_sentence(tmp_path, models, certificates):
    wrong = {"certificate": str(certificates / "own.pem"), "key": str(certificates / "other.key")}
    with pytest.raises(ConfigError, match="The certificates in tls cannot be used"):
        server_context(configure(tmp_path, models[:1], tls=wrong).tls)
