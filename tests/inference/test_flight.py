"""Several scans at work at once: what overlaps, what does not, and how much is in memory together."""

import os
import signal
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch

from tests.pipeline import blob, write_model
from volseg import Segmenter
from volseg.api import predict as files_of_scans
from volseg.api import segmenter as api
from volseg.api.predict import predict
from volseg.config import Channel
from volseg.data.grid.preprocess import device_normaliser, normaliser
from volseg.data.io.any_scan import as_scan
from volseg.errors import Stopped, VolsegError
from volseg.inference.flight import in_flight
from volseg.inference.labelling import _put_values
from volseg.inference.room import SCAN_BYTES, bytes_at_work, room_together
from volseg.inference.stream import Ring
from volseg.progress import silent
from volseg.system import MemoryLimit

AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])
# Longer than any machine takes, however busy; a test that fails waits for it once.
LATEST = 120


class Device(torch.nn.Module):
    """A device that computes one window at a time and leaves the CPU alone meanwhile, with a record of its threads."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.classes, self.seconds = classes, 0.0
        self.alone = threading.Lock()
        self.here, self.most = set(), 0
        self.began = threading.Semaphore(0)
        self.waits_for = None

    def forward(self, x):
        with self.alone:
            if threading.get_ident() not in self.here:
                self.here.add(threading.get_ident())
                self.began.release()
                if self.waits_for is not None:
                    waits_for, self.waits_for = self.waits_for, None
                    assert waits_for()
            time.sleep(self.seconds)
        return torch.cat([-x, x, x - 1], 1)[:, : self.classes]


@pytest.fixture
def device(tmp_path, monkeypatch):
    """A segmenter on a simulated device, with four scans at work at once and one at the device."""
    monkeypatch.setattr(api, "scans_at_once", lambda *_: 4)
    monkeypatch.setattr(api, "scans_at_device", lambda *_: 1)
    segmenter = Segmenter.load(write_model(tmp_path / "m.safetensors"), device="cpu", precision="fp32")
    network = Device(segmenter.card.plan.network.classes).eval()
    return replace(segmenter, labeller=replace(segmenter.labeller, network=network)), network


def scans(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.roll(blob(), shift, axis=0), AFFINE) for shift in range(count)]


def test_the_next_scans_are_prepared_while_the_device_is_at_work_and_the_last_is_measured(device, monkeypatch):
    """Each side waits for the other, so that stages one after the other would never end."""
    segmenter, network = device
    prepared, measured = threading.Semaphore(0), []
    prepare, measure = api.image_to_network, api.measure

    def preparing(*given):
        found = prepare(*given)
        prepared.release()
        return found

    def measuring(*given):
        if not measured:
            # The first scan began at the device before it is measured; the second begins while it is.
            measured.append(network.began.acquire(timeout=LATEST) and network.began.acquire(timeout=LATEST))
        return measure(*given)

    monkeypatch.setattr(api, "image_to_network", preparing)
    monkeypatch.setattr(api, "measure", measuring)
    network.waits_for = lambda: all(prepared.acquire(timeout=LATEST) for _ in range(3))
    found = list(segmenter.map(scans(5)))
    assert [outcome.error for outcome in found] == [None] * 5
    assert measured == [True]


def test_labels_are_those_of_one_scan_after_the_other(device, monkeypatch):
    segmenter, _ = device
    together = list(segmenter.map(scans(6)))
    monkeypatch.setattr(api, "scans_at_once", lambda *_: 1)
    for one, other in zip(together, segmenter.map(scans(6)), strict=True):
        np.testing.assert_array_equal(one.result.labels, other.result.labels)
        assert one.result.measures == other.result.measures
    assert len({outcome.result.labels.tobytes() for outcome in together}) > 1


@pytest.mark.parametrize("most", [1, 2])
def test_only_so_many_scans_are_at_the_device(device, most, monkeypatch):
    segmenter, network = device
    monkeypatch.setattr(api, "scans_at_device", lambda *_: most)
    inside, seen, lock = set(), [], threading.Lock()
    segment = api.Labeller.label

    def counted(labeller, *given):
        turns = labeller.turns

        class Counted:
            def __enter__(self):
                turns.__enter__()
                with lock:
                    inside.add(threading.get_ident())
                    seen.append(len(inside))

            def __exit__(self, *ended):
                with lock:
                    inside.remove(threading.get_ident())
                return turns.__exit__(*ended)

        return segment(replace(labeller, turns=Counted()), *given)

    monkeypatch.setattr(api.Labeller, "label", counted)
    network.seconds = 0.01
    assert all(outcome.result for outcome in segmenter.map(scans(6)))
    assert max(seen) <= most
    assert len(seen) == 6


@pytest.mark.parametrize(("room", "most"), [(25, 2), (5, 1), (1000, 4)])
def test_scans_at_work_are_as_many_as_fit_together(room, most, monkeypatch):
    """Those whose results nobody has taken yet count too."""
    monkeypatch.setattr("volseg.inference.flight.room_together", lambda: room)
    begun, lock = [], threading.Lock()

    def work(job, _):
        with lock:
            begun.append(job)
        return job

    for taken, result in enumerate(in_flight(range(12), lambda _: 10, work, 3, silent)):
        assert result == taken
        time.sleep(0.01)
        # The result at hand is the caller's.
        assert len(begun) <= taken + 1 + most
    assert begun == sorted(begun)
    assert len(begun) == 12


def test_what_a_scan_takes_is_estimated_from_its_files(tmp_path, monkeypatch):
    series = tmp_path / "series"
    series.mkdir()
    for number in range(3):
        (series / f"{number}.dcm").write_bytes(b"0" * 1000)
    assert bytes_at_work(series) == SCAN_BYTES + 2 * 3000
    assert bytes_at_work(tmp_path / "absent.nii.gz") == bytes_at_work("") == bytes_at_work(None) == SCAN_BYTES
    monkeypatch.setattr("volseg.inference.room.tightest_limit", lambda: MemoryLimit(200, 100, "the machine"))
    assert room_together() == 50


@pytest.mark.parametrize(
    "made",
    [
        lambda voxels: (voxels, AFFINE),
        lambda voxels: (torch.from_numpy(voxels), AFFINE),
        lambda voxels: nibabel.Nifti1Image(voxels, AFFINE),
        lambda voxels: as_scan((voxels, AFFINE), 1),
        lambda voxels: SimpleITK.GetImageFromArray(voxels),
    ],
    ids=["array", "tensor", "nibabel", "scan", "SimpleITK"],
)
def test_what_a_scan_in_memory_takes_is_estimated_from_its_voxels(made):
    assert bytes_at_work(made(blob().astype(np.float32))) == SCAN_BYTES + 2 * blob().size * 4


@pytest.mark.parametrize(
    "odd",
    [
        SimpleNamespace(shape=None, dtype=np.dtype("int16")),
        SimpleNamespace(shape=(None, 3), get_data_dtype=lambda: np.dtype("int16")),
        (),
        ("text", None),
        7,
    ],
    ids=["no shape", "no length", "empty", "text", "number"],
)
def test_what_is_no_scan_fails_alone(device, odd):
    segmenter, _ = device
    assert bytes_at_work(odd) == SCAN_BYTES
    first, second, third = segmenter.map([scans(1)[0], odd, scans(1)[0]])
    assert first.result
    assert isinstance(second.error, VolsegError)
    assert third.result


def test_of_scans_that_come_one_by_one_no_more_are_taken_than_there_is_room_for(device, monkeypatch):
    """They may be arrays that are large, or scans that arrive over hours."""
    segmenter, _ = device
    monkeypatch.setattr("volseg.inference.flight.room_together", lambda: 1)
    taken = []

    def arriving():
        for number, scan in enumerate(scans(6)):
            taken.append(number)
            yield scan

    for number, outcome in enumerate(segmenter.map(arriving())):
        assert outcome.result
        # That one is at work is found out from the next.
        assert len(taken) <= number + 2


def test_what_is_not_finite_is_refused_at_the_end_where_each_look_would_wait():
    def ring(looks):
        sums = torch.zeros(4, 2, 2, 3)
        sums[1, 0, 0, 2] = torch.nan
        return Ring(sums, None, 12, looks)

    with pytest.raises(VolsegError, match="NaN or Inf"):
        list(ring(True).finish(4))
    late = ring(False)
    assert [first for first, _ in late.finish(4)] == [0, 1, 2, 3]
    with pytest.raises(VolsegError, match="NaN or Inf"):
        late.require_finite()
    sound = Ring(torch.zeros(4, 2, 2, 3), None, 12, looks=False)
    assert len(list(sound.finish(4))) == 4
    sound.require_finite()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
@pytest.mark.parametrize(
    "channel",
    [
        Channel(normalisation="ct", mean=40.3, std=71.7, clip=(-160.5, 239.25)),
        Channel(normalisation="zscore"),
        Channel(normalisation="rescale"),
        Channel(normalisation="none"),
    ],
    ids=lambda channel: channel.normalisation,
)
def test_a_device_normalises_as_the_host_does_bit_for_bit(channel, dtype):
    stored = np.random.default_rng(1).integers(0, 250, (9, 10, 11)).astype(dtype)
    # In the order of a file, turned around.
    volume, box = stored.transpose(2, 0, 1)[::-1], ((1, 10), (2, 9), (0, 10))
    on_device = device_normaliser(channel, volume, box, torch.device("cpu"))
    expected = normaliser(channel, volume, None, box)
    for start, stop in ((0, 4), (4, 9)):
        np.testing.assert_array_equal(on_device(start, stop).numpy(), expected(start, stop))


def test_a_device_leaves_to_the_host_what_float32_does_not_hold():
    volume = np.random.default_rng(1).integers(0, 250, (4, 5, 6))
    far = (volume + 2**30).astype(np.int32)
    assert device_normaliser(Channel(normalisation="zscore"), far, None, torch.device("cpu")) is None
    assert (
        device_normaliser(Channel(normalisation="zscore"), volume.astype(np.int64), None, torch.device("cpu")) is None
    )
    channel = Channel(normalisation="zscore_nonzero")
    assert device_normaliser(channel, volume.astype(np.int16), None, torch.device("cpu")) is None


@pytest.mark.parametrize("values", [[0, 1, 2], [0, 7, 300]])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_labels_are_written_in_any_order_of_memory(values, order):
    planes = np.random.default_rng(0).integers(0, 3, (5, 40, 7)).astype(np.uint8)
    table = np.array(values, np.uint16)
    out = np.zeros(tuple(planes.shape[axis] for axis in order), np.uint16, order="F")
    _put_values(planes, table, out.transpose(np.argsort(order))[:, ::-1])
    np.testing.assert_array_equal(out.transpose(np.argsort(order))[:, ::-1], table[planes])


def test_after_ctrl_c_while_a_result_is_written_no_scan_is_at_work(device, monkeypatch, tmp_path):
    segmenter, network = device
    monkeypatch.setattr(files_of_scans, "MOST_WRITERS", 1)
    written, write = [], files_of_scans.write_case

    def interrupted(*given):
        if not written:
            written.append(1)
            assert all(network.began.acquire(timeout=LATEST) for _ in range(3))
            # Until the next result waits for this one.
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGINT)
        return write(*given)

    monkeypatch.setattr(files_of_scans, "write_case", interrupted)
    network.seconds = 0.05
    paths = []
    for number, (voxels, affine) in enumerate(scans(5)):
        # The first two are done at once, the others take half a minute.
        paths.append(tmp_path / f"{number}.nii.gz")
        image = nibabel.Nifti1Image(voxels if number < 2 else np.tile(voxels, (3, 3, 3)), affine)
        image.header.set_xyzt_units("mm")
        nibabel.save(image, paths[-1])
    # The error that is at hand holds what was in memory where it arose, a generator too.
    with pytest.raises(Stopped, match=r"^Interrupted: the results of 2 of 5 cases are complete, 0 failed\.$") as caught:
        list(predict(paths, segmenter, tmp_path / "out", probabilities=True))
    assert caught.tb
    assert not [one.name for one in threading.enumerate() if one.name.startswith("volseg-")]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"{number}{suffix}" for number in (0, 1) for suffix in (".nii.gz", ".json", ".probabilities.npy")}


def test_the_progress_of_several_scans_never_goes_back_and_comes_from_one_at_a_time(device, tmp_path, monkeypatch):
    monkeypatch.setattr(api, "scans_at_device", lambda *_: 4)
    segmenter, network = device
    network.seconds = 0.001
    paths = [tmp_path / f"{number}.nii.gz" for number in range(5)]
    for number, (path, (voxels, affine)) in enumerate(zip(paths, scans(5), strict=True)):
        # The first takes the longest.
        image = nibabel.Nifti1Image(voxels if number else np.tile(voxels, (2, 2, 2)), affine)
        image.header.set_xyzt_units("mm")
        nibabel.save(image, path)
    shown, inside = [], []

    def show(_stage, fraction, _text):
        inside.append(1)
        assert len(inside) == 1
        shown.append(fraction)
        time.sleep(0.001)
        inside.remove(1)

    outcomes = list(predict(paths, segmenter, tmp_path / "out", progress=show))
    assert [outcome.error for outcome in outcomes] == [None] * 5
    assert shown == sorted(shown)
    assert len(set(shown)) > 5
