"""A real Orthanc with DICOMweb on loopback, in a temporary folder."""

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def free_port() -> int:
    """A TCP port on loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def orthanc(folder: Path):
    """Start Orthanc with its storage in `folder`, and give "host:port" of its HTTP server.

    Raises:
        RuntimeError: it does not answer within 30 s.
    """
    port = free_port()
    config = {
        "Name": "volseg check",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": port,
        "DicomPort": free_port(),
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    file = folder / "orthanc.json"
    file.write_text(json.dumps(config))
    with (folder / "orthanc.log").open("w") as log:
        process = subprocess.Popen(["Orthanc", str(file)], stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_for(port, folder / "orthanc.log")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(port: int, log: Path) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/system", timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise RuntimeError(f"Orthanc does not answer on port {port} after 30 s:\n{log.read_text()[-2000:]}")


def store(archive: str, file: Path) -> None:
    """Put one DICOM file into the archive."""
    request = urllib.request.Request(f"http://{archive}/instances", file.read_bytes(), method="POST")
    urllib.request.urlopen(request, timeout=60).close()
