"""A scan goes in, labels come out on its own grid, whatever way it was stored."""

import hashlib
import itertools
import json
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tests.pipeline import blob, leftovers, tiny_plan, write_model
from volseg import Segmenter
from volseg.config import Label
from volseg.errors import InputError, ResourceError, UsageError
from volseg.inference.budget import scans_at_once

AFFINE = np.array([[-1.5, 0.1, 0, 20], [0.1, 1.5, 0, -30], [0, 0, 2.1, 5], [0, 0, 0, 1.0]])


class Answering(torch.nn.Module):
    """A network that answers windows by a function."""

    def __init__(self, answer):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.answer = answer

    def forward(self, x):
        return self.answer(x)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module")
def segmenter(model):
    return Segmenter.load(model, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def stored(segmenter):
    """A scan, and its labels as the scan was first stored."""
    scan = blob()
    return scan, segmenter((scan, AFFINE)).labels


def stored_otherwise(array, affine, order, flips):
    """The same scan with its axes in another order and direction."""
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for new, (old, flip) in enumerate(zip(order, flips, strict=True)):
        turn[old, new] = -1 if flip else 1
        if flip:
            turn[old, 3] = array.shape[old] - 1
    moved = array.transpose(order)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    return moved, affine @ turn


WAYS = list(itertools.product(itertools.permutations(range(3)), itertools.product((False, True), repeat=3)))


@pytest.mark.parametrize(("order", "flips"), WAYS)
def test_all_48_ways_to_store_a_scan_give_the_same_labels(segmenter, stored, order, flips):
    scan, labels = stored
    assert len(np.unique(labels)) > 1, "a test of equality needs something to compare"
    array, affine = stored_otherwise(scan, AFFINE, order, flips)
    expected, _ = stored_otherwise(labels, AFFINE, order, flips)
    np.testing.assert_array_equal(segmenter((np.ascontiguousarray(array), affine)).labels, expected)


class Constant(torch.nn.Module):
    """Says the same class everywhere."""

    def __init__(self, winner: int) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.nn.functional.one_hot(torch.tensor(winner), 3).float())

    def forward(self, x):
        return self.bias.reshape(1, 3, 1, 1, 1).expand(x.shape[0], 3, *x.shape[2:])


def with_network(segmenter: Segmenter, network: torch.nn.Module) -> Segmenter:
    """The same segmenter with another network."""
    return replace(segmenter, labeller=replace(segmenter.labeller, network=network))


@pytest.mark.parametrize("winner", [0, 1, 2])
def test_a_constant_network_gives_a_constant_image_through_windows_resampling_and_export(tmp_path, segmenter, winner):
    constant = with_network(segmenter, Constant(winner))
    result = constant((blob((37, 5, 50)), AFFINE))
    result.save(tmp_path / "out.nii.gz")
    written = np.asarray(nibabel.load(tmp_path / "out.nii.gz").dataobj)
    np.testing.assert_array_equal(written, np.full((37, 5, 50), winner, dtype=np.uint8))


def test_all_forms_of_a_scan_are_the_same_scan(tmp_path, segmenter, stored):
    scan, labels = stored
    image = nibabel.Nifti1Image(scan, AFFINE)
    nibabel.save(image, tmp_path / "scan.nii.gz")
    itk = sitk.ReadImage(str(tmp_path / "scan.nii.gz"))
    for form in (tmp_path / "scan.nii.gz", str(tmp_path / "scan.nii.gz"), image, itk):
        np.testing.assert_array_equal(segmenter(form).labels, labels)


def test_the_result_keeps_the_header_of_the_scan(tmp_path, segmenter):
    image = nibabel.Nifti1Image(blob(), AFFINE)
    image.set_sform(AFFINE, code=2)
    image.set_qform(AFFINE, code=1)
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, tmp_path / "scan.nii.gz")
    segmenter(tmp_path / "scan.nii.gz").save(tmp_path / "out.nii.gz")
    ours, theirs = nibabel.load(tmp_path / "out.nii.gz"), nibabel.load(tmp_path / "scan.nii.gz")
    assert ours.shape == theirs.shape
    assert ours.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(ours.affine, theirs.affine)
    for form in ("sform", "qform"):
        assert ours.header[f"{form}_code"] == theirs.header[f"{form}_code"]
        np.testing.assert_array_equal(getattr(ours, f"get_{form}")(), getattr(theirs, f"get_{form}")())
    assert ours.header.get_xyzt_units()[0] == "mm"


def test_volumes_and_record_agree_with_the_labels(tmp_path, segmenter, model):
    result = segmenter((blob(), AFFINE))
    result.save(tmp_path / "out.nii.gz")
    record = json.loads((tmp_path / "out.json").read_text())
    voxel_ml = abs(np.linalg.det(AFFINE[:3, :3])) / 1000
    for name, value in (("ball", 1), ("rod", 2)):
        voxels = int((result.labels == value).sum())
        assert record["labels"][name]["voxels"] == voxels
        if voxels:
            assert result.volumes_ml[name] == pytest.approx(voxels * voxel_ml)
        else:
            assert result.volumes_ml[name] is None
            assert record["labels"][name]["reason"]
    assert record["model"] == {"name": "tiny", "sha256": hashlib.sha256(model.read_bytes()).hexdigest()}
    assert record["device"] == "cpu"
    assert record["precision"] == "fp32"
    assert set(record["seconds"]) == {"read", "prepare", "segment", "measure"}
    assert not leftovers(tmp_path)


def test_label_values_of_the_plan_are_written(tmp_path):
    labels = (Label(name="ball", value=7), Label(name="rod", value=300))
    path = write_model(tmp_path / "model.safetensors", tiny_plan(labels=labels))
    result = Segmenter.load(path, precision="fp32")((blob(), AFFINE))
    assert result.labels.dtype == np.uint16
    assert set(np.unique(result.labels)) <= {0, 7, 300}
    assert len(np.unique(result.labels)) > 1


def test_map_keeps_the_order_and_turns_a_bad_case_into_an_outcome(tmp_path, segmenter, stored):
    scan, labels = stored
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"not an image")
    outcomes = list(segmenter.map([(scan, AFFINE), bad, (scan, AFFINE)]))
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert outcomes[1].input == bad
    assert isinstance(outcomes[1].error, InputError)
    np.testing.assert_array_equal(outcomes[2].result.labels, labels)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_scans_side_by_side_are_those_one_by_one(
    segmenter, stored, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = [(np.roll(stored[0], shift, axis=0), AFFINE) for shift in range(count)]
    threads = torch.get_num_threads()
    found = {}
    for at_once in (1, 2):
        monkeypatch.setattr("volseg.api.segmenter.scans_at_once", lambda *_, at_once=at_once: at_once)
        found[at_once] = list(segmenter.map(iter(scans)))
        assert torch.get_num_threads() == threads
        assert all(outcome.input is scan for outcome, scan in zip(found[at_once], scans, strict=True))
    for one, two in zip(found[1], found[2], strict=True):
        np.testing.assert_array_equal(one.result.labels, two.result.labels)
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == threads


def test_who_stops_listening_to_scans_side_by_side_gets_the_threads_back(segmenter, stored, monkeypatch) -> None:
    monkeypatch.setattr("volseg.api.segmenter.scans_at_once", lambda *_: 2)
    threads = torch.get_num_threads()
    outcomes = segmenter.map((stored[0], AFFINE) for _ in range(50))
    next(outcomes)
    outcomes.close()
    assert torch.get_num_threads() == threads
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("volseg-segment")]


def test_who_stops_listening_waits_for_no_more_than_the_windows_at_work(segmenter, monkeypatch) -> None:
    windows = []

    def slow(x):
        windows.append(len(x))
        time.sleep(0.02)
        return torch.randn(len(x), segmenter.card.plan.network.classes, *x.shape[2:])

    monkeypatch.setattr("volseg.api.segmenter.scans_at_once", lambda *_: 2)
    scan = (blob((120, 120, 120)), AFFINE)
    outcomes = with_network(segmenter, Answering(slow)).map([(blob((8, 8, 8)), AFFINE), scan, scan, scan])
    assert next(outcomes).result
    outcomes.close()
    assert len(windows) < 100
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("volseg-segment")]


@pytest.mark.parametrize(("edge", "at_once"), [(32, 4), (256, 1)])
def test_only_scans_with_small_windows_are_computed_side_by_side(edge, at_once, monkeypatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 16)
    monkeypatch.setattr("volseg.inference.budget.usable_cores", lambda: 6)
    monkeypatch.setattr("volseg.inference.budget.tightest_limit", lambda: None)
    plan = tiny_plan().model_copy(update={"patch_size": (edge,) * 3})
    assert scans_at_once(plan, torch.float32, torch.device("cpu")) == at_once
    # A GPU is kept busy by all cores, and the scans that wait for it need none.
    assert scans_at_once(plan, torch.float32, torch.device("cuda")) == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "toaster"}, "toaster"),
        ({"precision": "fp12"}, "fp12"),
        ({"overlap": 1.0}, "overlap"),
        ({"tta": "rotate"}, "rotate"),
    ],
)
def test_options_that_do_not_exist_are_refused(model, options, words):
    with pytest.raises(UsageError, match=words):
        Segmenter.load(model, **options)


def test_a_model_that_is_none_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04not safe")
    with pytest.raises(InputError, match="not a model file"):
        Segmenter.load(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="no model 'liver'"):
        Segmenter.load("liver")


def test_something_that_is_no_scan_is_refused(segmenter):
    with pytest.raises(UsageError, match="Cannot segment a dict: expected a path"):
        segmenter({"image": 1})


def test_bf16_gives_nearly_the_labels_of_fp32(model, stored):
    scan, labels = stored
    result = Segmenter.load(model, device="cpu", precision="bf16")((scan, AFFINE))
    assert result.run["precision"] == "bf16"
    assert (result.labels == labels).mean() > 0.97


def test_memory_that_runs_out_is_said_in_one_sentence(segmenter):
    def greedy_answer(_):
        raise MemoryError

    greedy = with_network(segmenter, Answering(greedy_answer))
    with pytest.raises(ResourceError, match="Out of memory while segmenting on cpu"):
        greedy((blob(), AFFINE))


def test_an_error_keeps_nothing_of_what_was_in_memory(segmenter):
    held = []

    def greedy_answer(x):
        maps = x + 1
        held.append(weakref.ref(maps))
        raise MemoryError(maps.shape)

    greedy = with_network(segmenter, Answering(greedy_answer))
    first, second = greedy.map([(blob(), AFFINE)] * 2)
    assert isinstance(first.error, ResourceError)
    assert isinstance(second.error.__cause__, MemoryError)
    assert [maps() for maps in held] == [None] * len(held)
    assert held


def test_mirroring_averages_over_mirror_images(tmp_path, stored):
    scan, _ = stored
    path = write_model(tmp_path / "m.safetensors", tiny_plan(mirror_axes=(2,)))
    mirrored = Segmenter.load(path, device="cpu", precision="fp32", tta="mirror", overlap=0.0)
    assert mirrored.labeller.windows.mirror_axes == (2,)
    # W is A here: mirroring the scan along it mirrors the labels, which the plain network does not promise.
    plain = np.diag([1.5, 1.5, 2.0, 1.0])
    scan = scan[:16, :16, :16]
    once, turned = mirrored((scan, plain)).labels, mirrored((scan[:, ::-1].copy(), plain)).labels
    np.testing.assert_array_equal(turned[:, ::-1], once)


def test_where_the_labels_cannot_be_written_there_is_no_record_either(tmp_path, segmenter, monkeypatch):
    result = segmenter((blob(), AFFINE))
    result.save(tmp_path / "out.nii.gz")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("volseg.data.io.writing._write_nibabel", full)
    for name in ("out.nii.gz", "new.nii.gz"):
        with pytest.raises(ResourceError, match="No space left on device"):
            result.save(tmp_path / name)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
