"""The DICOM node under stress, in front of a real Orthanc (Debian: orthanc, orthanc-dicomweb) on loopback.

    python benchmarks/dicom/node.py round SERIES [--count 20] [--to dicom-seg] [--seed 1] [--record]
    python benchmarks/dicom/node.py storm [--instances 2000] [--associations 8] [--seed 1] [--record]

`round` stores copies of a DICOM series that the bundled model fits, with UIDs of their own, in Orthanc, which forwards
them to the node; two models segment each. The node is killed (SIGKILL) twice and Orthanc stopped and started once, at
random moments. Then Orthanc has to hold exactly one result of each series and model.

`storm` sends slices of 512 x 512 over several associations at once while two models segment small series. All that was
acknowledged has to be in the store with the same pixels; prints the node's peak memory.

Exit code 1 if anything is lost or there twice.
"""

import argparse
import hashlib
import json
import random
import re
import signal
import sys
import tempfile
import threading
import time
import urllib.error
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, build_context

# What the benchmarks share, and the helpers of the tests, which are not installed.
sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from common.record import publish, record_options
from common.results import headline, rounded, table

from tests.data.io.dicom.writers import CT, classic, write_all
from tests.node.orthanc import Orthanc, free_port
from tests.node.world import Process, settings, write_series, write_settings
from tests.pipeline import write_model

# What the node may need during a storm beyond what it needs to segment.
STORM_BOUND_BYTES = 256 * 2**20
PIXELS = 512
SMALL_SERIES = 12


def main() -> int:
    main_parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = main_parser.add_subparsers(dest="verb", required=True)
    there = verbs.add_parser("round")
    there.add_argument("series", type=Path)
    there.add_argument("--count", type=int, default=20)
    there.add_argument("--to", default="dicom-seg")
    there.add_argument("--seed", type=int, default=1)
    storm = verbs.add_parser("storm")
    storm.add_argument("--instances", type=int, default=2000)
    storm.add_argument("--associations", type=int, default=8)
    storm.add_argument("--seed", type=int, default=1)
    for parser in (there, storm):
        record_options(parser)
    options = main_parser.parse_args()
    return run_round(options) if options.verb == "round" else run_storm(options)


@contextmanager
def world(to: str, **changes: Any) -> Iterator[tuple[Path, Orthanc, Process, int]]:
    """A folder, a running Orthanc, a node that is not started, and the node's port."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        port = free_port()
        orthanc = Orthanc(folder / "orthanc", ("VOLSEG", port), JobsHistorySize=1000)
        second = write_model(folder / "second.safetensors", seed=1)
        document = settings(folder, [second], port=port, archive_port=orthanc.port, **changes)
        document["rules"] = [
            {"model": model, "to": [to], "when": {"Modality": "MR"}} for model in ("hippocampus", str(second))
        ]
        orthanc.start()
        try:
            with Process(write_settings(folder, document)) as node:
                yield folder, orthanc, node, port
        finally:
            orthanc.stop()


def run_round(options: argparse.Namespace) -> int:
    """Floor: each series there and back, once for each model."""
    chance = random.Random(options.seed)
    started = time.monotonic()

    def said(text: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {text}", flush=True)

    with world(options.to, quiet_seconds=3) as (folder, orthanc, node, _):
        node.start()
        resources = [orthanc.add(copy_of(options.series, folder / str(k), k)) for k in range(options.count)]
        said(f"{len(resources)} series are in Orthanc")
        routing = threading.Thread(target=forward_all, args=(orthanc, resources))
        routing.start()
        begun = time.monotonic()
        moments = sorted(chance.uniform(1, 4 * options.count) for _ in range(3))
        restart = chance.randrange(3)
        for index, moment in enumerate(moments):
            time.sleep(max(0, begun + moment - time.monotonic()))
            if index == restart:
                orthanc.stop()
                said("Orthanc stopped")
                time.sleep(5)
                orthanc.start()
                said("Orthanc started")
            else:
                node.end(signal.SIGKILL)
                said("node killed")
                node.start()
                said(f"node started: {node.status()['counts']}")
        routing.join()
        wanted = 2 * options.count
        while node.status()["counts"]["deliveries"].get("sent", 0) < wanted and time.monotonic() - started < 1800:
            time.sleep(2)
        found = node.status()
        said(f"at the end: {found['counts']}")
        return judged_round(found, orthanc, options)


def judged_round(found: dict[str, Any], orthanc: Orthanc, options: argparse.Namespace) -> int:
    """Publish what Orthanc holds; 1 if that is not one result of each series and model."""
    count = options.count
    models = {one["id"]: Path(one["model"]).stem for one in found["jobs"]}
    sent = {one["sop_uid"]: models[one["job_id"]] for one in found["deliveries"]}
    query = {"Level": "Instance", "Query": {"Modality": "SEG"}, "Expand": True}
    there = orthanc.post("/tools/find", json.dumps(query).encode())
    uids = [one["MainDicomTags"]["SOPInstanceUID"] for one in there]
    held = Counter(sent.get(uid, "unknown") for uid in uids)
    title = f"{count} series through a DICOM node that is killed twice, to an archive that is away once"
    rows = [{"model": name, "series": count, "results in the archive": number} for name, number in held.items()]
    publish(options, "node-round", title, [table(rows)], [headline(title, rows[0]["model"], "results in the archive")])
    series = len({one["series_uid"] for one in found["jobs"]})
    good = held == Counter(dict.fromkeys(models.values(), count)) and len(set(uids)) == len(uids) and series == count
    print("PASS" if good else "FAIL")
    return not good


def copy_of(series: Path, folder: Path, number: int) -> Path:
    """A series with UIDs of its own."""
    folder.mkdir(parents=True)
    for k, path in enumerate(sorted(series.glob("*.dcm"))):
        data = dcmread(path)
        data.StudyInstanceUID, data.SeriesInstanceUID = f"1.2.826.0.1.{number}", f"1.2.826.0.1.{number}.7"
        data.FrameOfReferenceUID = f"1.2.826.0.1.{number}.9"
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.{number}.7.{k + 1}"
        data.PatientID = f"P{number}"
        data.save_as(folder / path.name)
    return folder


def forward_all(orthanc: Orthanc, resources: list[str]) -> None:
    """Forward each series to the node until Orthanc says that it has arrived, as an auto-route does."""
    for resource in resources:
        while True:
            try:
                orthanc.forward(resource)
                break
            except (OSError, urllib.error.URLError):
                time.sleep(1)


def run_storm(options: argparse.Namespace) -> int:
    """Floor: nothing acknowledged is lost, and memory stays bounded."""
    limits = {"free_disk": 0, "associations": options.associations + 2}
    with world("dicom-seg", quiet_seconds=2, limits=limits) as (folder, orthanc, node, port):
        node.start()
        resources = [orthanc.add(small(folder, k)) for k in range(SMALL_SERIES)]
        # Both models are loaded and have segmented once.
        orthanc.forward(resources[0])
        while len(node.status()["jobs"]) < 2 or node.status()["counts"]["jobs"].keys() & {"waiting", "running"}:
            time.sleep(0.5)
        before = memory(node)
        others = threading.Thread(target=forward_all, args=(orthanc, resources[1:]))
        others.start()
        started = time.monotonic()
        each = options.instances // options.associations
        pool = ProcessPoolExecutor(options.associations, mp_context=get_context("spawn"))
        with pool:
            parts = list(
                pool.map(send_part, *zip(*[(port, k, each) for k in range(options.associations)], strict=True))
            )
        seconds = time.monotonic() - started
        others.join()
        running = node.status()["counts"]["jobs"]
        peak = memory(node)
        acknowledged = {uid: digest for part in parts for uid, digest, status in part if status == 0}
        statuses = Counter(f"{status:04X}" for part in parts for _, _, status in part)
        node.end(signal.SIGKILL)
        lost = [uid for uid, digest in acknowledged.items() if digest_in(folder / "store", uid) != digest]
        node.start()
        known = node.status()["instances"]
    print(f"{options.associations} associations: {len(acknowledged)} acknowledged in {seconds:.1f} s, statuses "
          f"{dict(statuses)}, {len(lost)} lost, {known} objects known after a kill, jobs {running}")  # fmt: skip
    bound = before + STORM_BOUND_BYTES
    row = {
        "associations": options.associations,
        "acknowledged": len(acknowledged),
        "lost": len(lost),
        "seconds": rounded(seconds),
        "peak memory before, MiB": rounded(before / 2**20),
        "peak memory, MiB": rounded(peak / 2**20),
        "bound, MiB": rounded(bound / 2**20),
    }
    title = f"{options.instances} slices at once to a DICOM node while two models segment"
    publish(options, "node-storm", title, [table([row])], [headline(title, options.associations, "lost")])
    good = len(acknowledged) == each * options.associations and not lost and peak <= bound
    print("PASS" if good else "FAIL")
    return not good


def small(folder: Path, number: int) -> Path:
    """A small MR series."""
    return write_series(folder, 1000 + number, slices=24)


def send_part(port: int, part: int, count: int) -> list[tuple[str, str, int]]:
    """Send the slices of one series over one association: UID, digest of the pixels, and status of each."""
    entity = AE(ae_title="SENDER")
    contexts = [build_context(CT, ExplicitVRLittleEndian)]
    association = entity.associate("127.0.0.1", port, contexts=contexts, ae_title="VOLSEG")
    rng, sent = np.random.default_rng(part), []
    with tempfile.TemporaryDirectory() as folder:
        for k in range(count):
            (data,) = classic(rng.integers(0, 4096, (PIXELS, PIXELS, 1), dtype=np.uint16), sop_class=CT)
            data.StudyInstanceUID, data.SeriesInstanceUID = f"1.2.826.0.2.{part}", f"1.2.826.0.2.{part}.7"
            data.SOPInstanceUID = f"1.2.826.0.2.{part}.7.{k + 1}"
            write_all(Path(folder), [data])
            answer = association.send_c_store(dcmread(next(Path(folder).iterdir())))
            digest = hashlib.sha256(data.PixelData).hexdigest()
            sent.append((str(data.SOPInstanceUID), digest, int(answer.Status) if "Status" in answer else -1))
    association.release()
    return sent


def digest_in(store: Path, uid: str) -> str:
    """The digest of the pixels of an object in the store; empty if it is not there."""
    path = store / "series" / uid.rpartition(".")[0] / f"{uid}.dcm"
    return hashlib.sha256(dcmread(path).PixelData).hexdigest() if path.exists() else ""


def memory(node: Process) -> int:
    """The peak resident memory of the node so far, in bytes."""
    text = Path(f"/proc/{node.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", text)[1]) * 1024


if __name__ == "__main__":
    sys.exit(main())
