"""A real Orthanc on loopback, with free ports and a folder of its own."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
TITLE = "ORTHANC"
# urllib would ask a proxy of the environment.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port() -> int:
    """A port of loopback that nothing listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Orthanc:
    """An Orthanc with its storage in `folder`; it may be stopped and started again."""

    def __init__(self, folder: Path, peer: tuple[str, int], **options: Any) -> None:
        self.folder, self.port, self.http_port = folder, free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        names = ("node", "volseg")
        settings = {
            "Name": "test", "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
            "HttpPort": self.http_port, "DicomPort": self.port, "DicomAet": TITLE, "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomModalities": {name: [peer[0], "127.0.0.1", peer[1]] for name in names},
            "Plugins": [str(DICOMWEB)] if DICOMWEB.exists() else [], "StableAge": 1, "OverwriteInstances": False,
            "DicomScuTimeout": 60, **options,
        }  # fmt: skip
        (folder / "orthanc.json").write_text(json.dumps(settings))

    @property
    def web(self) -> str:
        """The URL of DICOMweb."""
        return f"http://127.0.0.1:{self.http_port}/dicom-web"

    def start(self) -> None:
        """Start, and wait until it answers."""
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen([PROGRAM, str(self.folder / "orthanc.json")], stdout=log, stderr=log)
        for _ in range(200):
            try:
                self.get("/system")
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise AssertionError((self.folder / "log").read_text())

    def stop(self) -> None:
        """End it cleanly."""
        if self._process:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def get(self, path: str) -> Any:
        """The JSON of a GET request."""
        return self._ask(urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}"))

    def post(self, path: str, body: bytes) -> Any:
        """The JSON of the answer to a POST request."""
        return self._ask(urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", data=body, method="POST"))

    def add(self, folder: Path) -> str:
        """Store the files of a folder; Orthanc's identifier of their series."""
        for path in sorted(folder.glob("*.dcm")):
            answer = self.post("/instances", path.read_bytes())
        return answer["ParentSeries"]

    def forward(self, resource: str) -> None:
        """Send a series to the node by C-STORE, and wait until it is there."""
        self.post("/modalities/node/store", json.dumps({"Resources": [resource], "Synchronous": True}).encode())

    def series(self, **tags: str) -> list[dict[str, Any]]:
        """The series with these tags."""
        query = {"Level": "Series", "Query": tags, "Expand": True}
        return self.post("/tools/find", json.dumps(query).encode())

    @staticmethod
    def _ask(request: urllib.request.Request) -> Any:
        with _OPENER.open(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")
