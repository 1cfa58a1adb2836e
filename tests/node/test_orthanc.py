"""The node and a real Orthanc: a series is forwarded to the node, and its result is in the same study."""

import urllib.request

import pytest
from dicomweb_client.web import DICOMwebClient
from pydicom import dcmread

from tests.docs.pages import ROOT, blocks_of
from tests.node.orthanc import DICOMWEB, PROGRAM, Orthanc, free_port
from tests.node.world import LABELMAP_SEG, PATIENT, SEG, ask, configure, uids, wait_for, write_series, write_stub
from volseg.node.errors import RefusedClassError
from volseg.node.sender import send_by_dimse
from volseg.node.service import Node

needs_dicomweb = pytest.mark.skipif(
    not DICOMWEB.exists(), reason="the DICOMweb plugin of Orthanc is not installed (Debian: orthanc-dicomweb)"
)


def node_of(orthanc, folder, models, **changes):
    dimse = {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": orthanc.port}
    archive = {"dimse": dimse, "dicomweb": {"url": orthanc.web}, "send": changes.pop("send", "dimse")}
    return Node(configure(folder, models, port=orthanc.node_port, archive=archive, http_port=0, **changes))


def result_of(orthanc, number):
    """The SEG series of a study, once it is there."""
    found = wait_for(lambda: orthanc.series(StudyInstanceUID=uids(number)[0], Modality="SEG"))
    return [one["MainDicomTags"]["SeriesInstanceUID"] for one in found]


def test_a_series_is_forwarded_and_its_result_comes_back_in_the_same_study(orthanc, tmp_path, models):
    with node_of(orthanc, tmp_path, models[:1]) as node:
        resource = orthanc.add(write_series(tmp_path, 1))
        orthanc.forward(resource)
        assert len(result_of(orthanc, 1)) == 1
        orthanc.forward(resource)
        wait_for(lambda: node.store.queue.counts()["deliveries"] == {"sent": 1})
    (study,) = orthanc.get("/studies?expand")
    assert study["PatientMainDicomTags"]["PatientName"] == PATIENT["PatientName"]
    assert len(study["Series"]) == 2


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """The script of the documentation."""
    (block,) = [one for one in blocks_of(ROOT / "docs" / "how-to" / "dicom-node.md") if one.language == "lua"]
    path = tmp_path_factory.mktemp("lua") / "to-volseg.lua"
    path.write_text(block.text)
    return path


def test_the_script_of_the_documentation_routes_a_series_to_the_node_and_no_result(script, tmp_path, models):
    if PROGRAM is None:
        pytest.skip("Orthanc is not installed (Debian: orthanc orthanc-dicomweb)")
    port = free_port()
    orthanc = Orthanc(tmp_path / "orthanc", ("VOLSEG", port), LuaScripts=[str(script)])
    orthanc.node_port = port
    orthanc.start()
    try:
        with node_of(orthanc, tmp_path, models[:1]) as node:
            orthanc.add(write_series(tmp_path, 1))
            assert len(result_of(orthanc, 1)) == 1
            (series,) = node.store.queue.overview()["series"]
            assert (series["series_uid"], series["instances"]) == (uids(1)[1], 6)
    finally:
        orthanc.stop()


@needs_dicomweb
def test_by_dicomweb_alone(orthanc, tmp_path, models):
    """The series is fetched by QIDO-RS and WADO-RS when that is asked for, and its result sent by STOW-RS."""
    with node_of(orthanc, tmp_path, models[:1], send="dicomweb", quiet_seconds=600) as node:
        folder = write_series(tmp_path, 1)
        orthanc.add(folder)
        study, series = uids(1)
        status, _ = ask(f"http://127.0.0.1:{node.web.port}/studies/{study}/series/{series}/fetch", b"")
        assert status == 202
        (found,) = result_of(orthanc, 1)
        (kept,) = node.store.queue.overview()["series"]
        assert (kept["instances"], kept["said_complete"]) == (6, 1)
        pixels = {one.SOPInstanceUID: one.PixelData for one in map(dcmread, folder.glob("*.dcm"))}
        for path in node.store.series_folder(series).glob("*.dcm"):
            assert dcmread(path).PixelData == pixels[path.stem]
    (instance,) = DICOMwebClient(orthanc.web).search_for_instances(study, found)
    assert instance["00080016"]["Value"] == [SEG]


@needs_dicomweb
def test_orthanc_sends_by_stow_rs_to_the_node(orthanc, tmp_path, models):
    with node_of(orthanc, tmp_path, models[:1]) as node:
        resource = orthanc.add(write_series(tmp_path, 1))
        server = f'{{"Url": "http://127.0.0.1:{node.web.port}/dicom-web/", "ChunkedTransfers": "1"}}'.encode()
        url = f"http://127.0.0.1:{orthanc.http_port}/dicom-web/servers/node"
        urllib.request.urlopen(urllib.request.Request(url, data=server, method="PUT"), timeout=30).close()
        orthanc.post("/dicom-web/servers/node/stow", f'{{"Resources": ["{resource}"], "Synchronous": true}}'.encode())
        assert node.store.queue.instance_count() == 6
        assert len(result_of(orthanc, 1)) == 1


def test_all_formats_come_back_and_a_labelmap_as_binary(orthanc, tmp_path, models):
    """What refers to the segmentation is made anew as well, so that nothing is there twice."""
    formats = ["dicom-seg:labelmap", "dicom-sr:labelmap", "rtstruct", "dicom-sc"]
    rules = [{"model": str(models[0]), "to": formats}]
    with node_of(orthanc, tmp_path, models[:1], rules=rules) as node:
        for number in (1, 2):
            orthanc.forward(orthanc.add(write_series(tmp_path, number)))
            count = 4 * number
            wait_for(lambda count=count: node.store.queue.counts()["deliveries"].get("sent") == count, 60)
        found = node.store.queue.overview()
    assert [job["state"] for job in found["jobs"]] == ["done", "done"]
    assert {one["sop_class"] for one in found["deliveries"] if one["state"] == "replaced"} >= {LABELMAP_SEG}
    for number in (1, 2):
        results = orthanc.series(StudyInstanceUID=uids(number)[0])
        modalities = sorted(one["MainDicomTags"]["Modality"] for one in results)
        assert modalities.count("SEG") == modalities.count("SR") == modalities.count("RTSTRUCT") == 1
        assert len(results) == 5


def test_orthanc_takes_no_labelmap_by_default(orthanc, tmp_path, models):
    """The reason for the fallback to BINARY; with UnknownSopClassAccepted it takes them."""
    config = configure(tmp_path, models[:1])
    archive = config.archive.dimse.model_copy(update={"port": orthanc.port})

    class Result:
        scan = type("Scan", (), {"source": str(write_series(tmp_path, 1))})
        run = {"model": {"name": "tiny", "sha256": "ab" * 32}}  # noqa: RUF012

    write_stub(Result, tmp_path / "labelmap.dcm", LABELMAP_SEG)
    with pytest.raises(RefusedClassError, match="the archive does not accept the SOP class"):
        send_by_dimse(config, archive, str(tmp_path / "labelmap.dcm"), LABELMAP_SEG)
    write_stub(Result, tmp_path / "binary.dcm")
    send_by_dimse(config, archive, str(tmp_path / "binary.dcm"), SEG)
    assert len(orthanc.series(Modality="SEG")) == 1
