"""What tests of the node share: small series with a patient, a tiny model, a result format, and nodes."""

import hashlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import yaml
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, build_context

from tests.data.io.dicom.writers import MR, classic, write, write_all
from tests.pipeline import blob
from volseg.api.outputs import add_format
from volseg.config import read_yaml
from volseg.node.config import NodeConfig, load_node_config
from volseg.node.status import status

SEG, LABELMAP_SEG = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
# What must appear nowhere but in DICOM files.
PATIENT = {
    "PatientName": "Doe^Secretperson", "PatientID": "SECRETID77", "PatientBirthDate": "19370203",
    "AccessionNumber": "ACC5150",
}  # fmt: skip
SENDER = "SENDER"
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def uids(number: int) -> tuple[str, str]:
    """The UIDs of the study and the series with a number."""
    return f"1.2.826.0.1.{number}", f"1.2.826.0.1.{number}.7"


def datasets(number: int, slices: int = 6, **attributes: Any) -> list[Dataset]:
    """The slices of a series of PATIENT, 20 x 24 pixels each."""
    study, series = uids(number)

    def change(k: int, data: Dataset) -> None:
        data.SOPInstanceUID = f"{series}.{k + 1}"

    stated = {"StudyInstanceUID": study, "SeriesInstanceUID": series, "SeriesDescription": "T1 head"}
    return classic(blob((20, 24, slices), seed=number), change=change, **{**PATIENT, **stated, **attributes})


def write_series(folder: Path, number: int, slices: int = 6, **attributes: Any) -> Path:
    """The files of a series."""
    return write_all(folder / f"series{number}", datasets(number, slices, **attributes))


def write_stub(result: Any, path: Path, sop_class: str = SEG) -> None:
    """A result format: the smallest object of the same study, the same for the same series and model."""
    source = dcmread(min(Path(result.scan.source).glob("*.dcm")), stop_before_pixels=True)
    digest = hashlib.sha256(f"{source.SeriesInstanceUID}{result.run['model']['sha256']}{sop_class}".encode())
    number = int(digest.hexdigest()[:24], 16)
    data = Dataset()
    for name in ("PatientName", "PatientID", "StudyInstanceUID", "PatientBirthDate", "StudyID"):
        setattr(data, name, source.get(name, ""))
    data.SOPClassUID, data.Modality = sop_class, "SEG"
    data.SOPInstanceUID, data.SeriesInstanceUID = f"2.25.{number}", f"2.25.{number}.1"
    data.SeriesDescription = result.run["model"]["name"]
    write(data, path)


def add_formats() -> None:
    """Add the result format `stub`."""
    add_format("stub", ".seg.dcm", write_stub)


def settings(folder: Path, models: list[Path], port: int = 0, **changes: Any) -> dict[str, Any]:
    """A node.yaml as plain values: the sender of these tests may send, and results go to `archive_port`."""
    archive_port = changes.pop("archive_port", 1)
    return {
        "port": port, "store": str(folder / "store"), "quiet_seconds": 0.3,
        "peers": [{"ae_title": name, "address": "127.0.0.1"} for name in (SENDER, "ORTHANC")],
        "archive": {"dimse": {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": archive_port}},
        "rules": [{"model": str(model), "to": ["stub"], "when": {"Modality": "MR"}} for model in models],
        "retry": {"first_seconds": 0.2, "longest_seconds": 1, "attempts": 50}, "limits": {"free_disk": 0},
        "compute": {"device": "cpu"}, **changes,
    }  # fmt: skip


def write_settings(folder: Path, document: dict[str, Any]) -> Path:
    """The file node.yaml of these values."""
    path = folder / "node.yaml"
    path.write_text(yaml.safe_dump(document))
    assert read_yaml(path) == document
    return path


def configure(folder: Path, models: list[Path], **changes: Any) -> NodeConfig:
    """The configuration of a node in `folder`."""
    return load_node_config(write_settings(folder, settings(folder, models, **changes)))


def send(port: int, paths: Iterable[Path | str], title: str = SENDER, called: str = "VOLSEG", **tls: Any) -> list[int]:
    """Send files by C-STORE; the status of each, -1 where there was no answer, none without an association."""
    contexts = [build_context(one, ExplicitVRLittleEndian) for one in (MR, SEG)]
    association = AE(ae_title=title).associate("127.0.0.1", port, contexts=contexts, ae_title=called, **tls)
    if not association.is_established:
        return []
    try:
        answers = [association.send_c_store(path) for path in paths]
        return [int(answer.Status) if "Status" in answer else -1 for answer in answers]
    finally:
        if association.is_established:
            association.release()


def wait_for(condition: Callable[[], Any], seconds: float = 30, pause: float = 0.05) -> Any:
    """What a condition gives once it holds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(pause)
    raise AssertionError("waited in vain")


def ask(url: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """The status and the answer of an HTTP request: GET, or POST of a body."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, data=body, headers=named)
    try:
        with _OPENER.open(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


class Process:
    """`volseg node` in a process of its own, with the formats of these tests; killed at the end of its context."""

    def __init__(self, config: Path) -> None:
        self.config, self.log = config, config.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process and self._process.poll() is None:
            self.end()

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it listens."""
        lines = self.log.read_text().count("listens on") if self.log.exists() else 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with open(self.log, "ab") as log:
            command = [sys.executable, "-m", "tests.node.program", "node", "--config", str(self.config)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        wait_for(lambda: self.log.read_text().count("listens on") > lines or self._process.poll() is not None, 60)
        assert self._process.poll() is None, self.log.read_text()

    def end(self, how: int = signal.SIGKILL) -> int:
        """End it; its exit code."""
        assert self._process
        self._process.send_signal(how)
        return self._process.wait(60)

    def status(self) -> dict[str, Any]:
        """The document of `volseg node status --json`."""
        return status(self.config)
