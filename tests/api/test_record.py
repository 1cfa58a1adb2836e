"""What arrives in the engine from `Segmenter.load` and `predict`, and every field of the record of a result."""

import hashlib
import json
import platform
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from tests.pipeline import blob, tiny_plan, write_model
from volseg import Segmenter, __version__, predict
from volseg.api import segmenter as segmenter_module
from volseg.config import Channel, ComponentRule, Label
from volseg.data.io.choice import Choice
from volseg.data.io.inputs import Case
from volseg.errors import UsageError
from volseg.inference.budget import ChunkSize, MemoryPlan, windows_at_once
from volseg.inference.labelling import Labeller
from volseg.inference.windows import Windows
from volseg.modelfile import ModelCard, save_model
from volseg.networks import UNet

AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])
# Every option of `Segmenter.load`, none with its default.
OPTIONS = {
    "device": "cpu", "precision": "bf16", "overlap": 0.25, "tta": "mirror", "max_memory": "3G", "crop": "body"
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", tiny_plan(mirror_axes=(2,)))


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "scan.nii.gz"
    image = nibabel.Nifti1Image(blob(), AFFINE)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


class Bright(torch.nn.Module):
    """Says ball where the scan is bright, and never rod."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, image):
        bright = image[:, :1] - 1
        return torch.cat([-bright, bright, torch.full_like(bright, -99.0)], 1)


def bright(segmenter: Segmenter) -> Segmenter:
    return replace(segmenter, labeller=replace(segmenter.labeller, network=Bright()))


def test_every_option_of_loading_arrives(model):
    segmenter = Segmenter.load(model, **OPTIONS)
    plan = segmenter.card.plan
    labeller = segmenter.labeller
    at_once = windows_at_once(plan, torch.bfloat16, torch.device("cpu"))
    assert labeller.windows == Windows(plan.patch_size, 0.25, at_once, (2,))
    assert (labeller.plan, labeller.dtype, labeller.device) == (plan, torch.bfloat16, torch.device("cpu"))
    assert not labeller.network.training
    assert (segmenter.max_memory, segmenter.crop) == (3 * 2**30, "body")
    assert segmenter.sha256 == hashlib.sha256(model.read_bytes()).hexdigest()


def test_loading_without_options(model):
    segmenter = Segmenter.load(model, device="cpu", precision="fp32")
    plan = segmenter.card.plan
    at_once = windows_at_once(plan, torch.float32, torch.device("cpu"))
    assert segmenter.labeller.windows == Windows(plan.patch_size, 0.5, at_once, ())
    assert (segmenter.labeller.dtype, segmenter.max_memory, segmenter.crop) == (torch.float32, None, "none")


def test_threads_are_limited_before_a_model_or_a_scan_is_read(model, scan, monkeypatch):
    """A forked process would wait for PyTorch's threads."""
    calls = []

    def note(name):
        function = getattr(segmenter_module, name)
        monkeypatch.setattr(segmenter_module, name, lambda *given: calls.append(name) or function(*given))

    for name in ("limit_threads_after_fork", "open_network", "as_scan", "scans_at_once"):
        note(name)
    segmenter = Segmenter.load(model, device="cpu", precision="fp32")
    assert calls == ["limit_threads_after_fork", "open_network"]
    calls.clear()
    segmenter(scan)
    assert calls == ["limit_threads_after_fork", "as_scan"]
    calls.clear()
    list(segmenter.map([]))
    assert calls[:2] == ["limit_threads_after_fork", "scans_at_once"]


def test_a_higher_overlap_computes_more_windows(model):
    """The option changes what is computed, not only what is said."""
    scan = (blob((50, 50, 50)), AFFINE)
    found = {}
    for overlap in (0.0, 0.5, 0.75):
        windows = []
        segmenter = bright(Segmenter.load(model, device="cpu", precision="fp32", overlap=overlap))
        network = segmenter.labeller.network
        network.register_forward_hook(lambda _, given, __, windows=windows: windows.append(len(given[0])))
        assert segmenter(scan).record["overlap"] == overlap
        found[overlap] = sum(windows)
    assert found[0.0] < found[0.5] < found[0.75]


def test_every_field_of_the_record(model, scan, tmp_path, monkeypatch):
    monkeypatch.setattr("volseg.api.segmenter.peak_memory_bytes", lambda: 987654321)
    result = Segmenter.load(model, **OPTIONS)(scan)
    result.save(tmp_path / "out.nii.gz")
    record = json.loads((tmp_path / "out.json").read_text())
    labels = np.asarray(nibabel.load(tmp_path / "out.nii.gz").dataobj)
    started = datetime.fromisoformat(record.pop("started"))
    assert abs((datetime.now(UTC) - started).total_seconds()) < 120
    assert record.pop("device_name")
    assert record.pop("seconds").keys() == {"read", "prepare", "segment", "measure"}
    found = record.pop("labels")
    assert {name: one["voxels"] for name, one in found.items()} == {
        name: int((labels == value).sum()) for name, value in (("ball", 1), ("rod", 2))
    }
    assert record.pop("flags") == [f"{name}: {flag}" for name, one in found.items() for flag in one["flags"]]
    assert record == {
        "volseg_version": __version__,
        "input": [{"kind": "file", "sha256": hashlib.sha256(scan.read_bytes()).hexdigest()}],
        "model": {"name": "tiny", "sha256": hashlib.sha256(model.read_bytes()).hexdigest()},
        "device": "cpu",
        "precision": "bf16",
        "overlap": 0.25,
        "mirror_axes": [2],
        "crop": "body",
        "postprocessing": {},
        "peak_memory_bytes": 987654321,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "platform": platform.platform(),
        "warnings": [],
        "formats": ["nifti"],
        "not_written": {},
    }


def test_seconds_are_those_of_each_stage(model, scan, monkeypatch):
    class Clock:
        now = 50.0

        def perf_counter(self) -> float:
            return self.now

    clock = Clock()

    def slower(name: str, seconds: float, place: object = "volseg.api.segmenter") -> None:
        module = __import__("importlib").import_module(place) if isinstance(place, str) else place
        function = getattr(module, name)

        def slow(*args, **kwargs):
            clock.now += seconds
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, slow)

    segmenter = Segmenter.load(model, device="cpu", precision="fp32")
    monkeypatch.setattr("volseg.api.segmenter.time", clock)
    slower("as_scan", 2.0)
    slower("image_to_network", 3.0)
    slower("label", 5.0, Labeller)
    slower("postprocess", 7.0)
    slower("measure", 11.0)
    assert segmenter(scan).record["seconds"] == {"read": 2.0, "prepare": 3.0, "segment": 5.0, "measure": 18.0}


def test_what_was_planned_arrives_in_every_stage(model, scan, monkeypatch):
    chunk = ChunkSize(1 << 10)
    seen = {}
    label = Labeller.label

    def labelling(self, volume, grid, progress, sink, given, observer):
        seen["label"] = (progress, given)
        return label(self, volume, grid, progress, sink, given, observer)

    def recording(name):
        function = getattr(__import__("volseg.api.segmenter", fromlist=[name]), name)
        monkeypatch.setattr(
            f"volseg.api.segmenter.{name}", lambda *given: seen.setdefault(name, given) and function(*given)
        )

    def planning(need, limit, others):
        assert others == 0
        seen["need"], seen["limit"] = need, limit
        return MemoryPlan(chunk, need.windows, 1), 1

    monkeypatch.setattr("volseg.api.segmenter.plan_chunks", planning)
    monkeypatch.setattr(Labeller, "label", labelling)
    for name in ("postprocess", "measure", "examine"):
        recording(name)
    segmenter = Segmenter.load(model, **OPTIONS)

    def told(*_):
        pass

    result = segmenter(scan, told)
    plan = segmenter.card.plan
    assert seen["label"] == (told, chunk)
    need = seen["need"]
    assert (need.card, need.windows, need.dtype) == (segmenter.card, segmenter.labeller.windows, torch.bfloat16)
    assert (need.device.type, need.probabilities, seen["limit"]) == ("cpu", False, 3 * 2**30)
    _, labels, rules, voxel_ml, voxels, room = seen["postprocess"]
    assert (labels, rules, voxels) == (plan.labels, segmenter.card.postprocessing, 1 << 10)
    assert voxel_ml == pytest.approx(0.0045)
    assert 0 < room < 3 * 2**30
    assert seen["measure"][1:] == (plan.labels, voxel_ml, 1 << 10, "")
    examined, found, of, measures = seen["examine"]
    assert (examined.channels, of) == (result.scan.channels, plan)
    assert np.array_equal(found, result.labels)
    assert tuple(measures) == result.measures


@pytest.mark.parametrize(("low", "high", "raised"), [(0, 2000, False), (1e6, 2e6, True), (0, 1, True)])
def test_an_intensity_outside_the_training_range_is_flagged_in_result_and_record(tmp_path, scan, low, high, raised):
    plan = tiny_plan(channels=(Channel(name="MRI", normalisation="none", mean_range=(low, high)),))
    result = Segmenter.load(write_model(tmp_path / "m.safetensors", plan), device="cpu", precision="fp32")(scan)
    result.save(tmp_path / "out.nii.gz")
    flag = "scan: intensity_outside_training_range"
    assert (flag in result.flags) == raised
    assert (flag in json.loads((tmp_path / "out.json").read_text())["flags"]) == raised


def test_the_flags_of_labels_are_raised_in_the_result(tmp_path):
    labels = (Label(name="ball", value=1, volume_ml_range=(50.0, 60.0)), Label(name="rod", value=2))
    model = write_model(tmp_path / "m.safetensors", tiny_plan(labels=labels))
    segmenter = bright(Segmenter.load(model, device="cpu", precision="fp32"))
    array = np.zeros((30, 30, 30), np.int16)
    array[4:10, 4:10, 4:10] = array[18:24, 18:24, 18:24] = 1000
    result = segmenter((array, AFFINE))
    assert result.flags == (
        "ball: several_components", "ball: volume_outside_training_range", "rod: empty",
    )  # fmt: skip
    array[:, :10, :10] = 1000
    array[18:24, 18:24, 18:24] = 0
    assert "ball: touches_border" in segmenter((array, AFFINE)).flags


def test_the_rules_of_the_model_are_applied_and_recorded(tmp_path):
    rules = {"ball": ComponentRule(smallest_ml=0.0, largest_only=True)}
    plan = tiny_plan()
    card = ModelCard(name="tiny", plan=plan, postprocessing=rules)
    save_model(tmp_path / "m.safetensors", card, UNet(plan.network).state_dict())
    segmenter = bright(Segmenter.load(tmp_path / "m.safetensors", device="cpu", precision="fp32"))
    array = np.zeros((30, 30, 30), np.int16)
    array[4:12, 4:12, 4:12] = array[20:24, 20:24, 20:24] = 1000
    result = segmenter((array, AFFINE))
    assert not result.labels[16:].any()
    assert result.labels[:16].any()
    assert result.record["postprocessing"]["ball"]


class RecordedError(Exception):
    """A function was called, and goes no further."""


def test_predict_loads_the_model_with_every_option(monkeypatch, scan, tmp_path):
    seen = {}

    def loading(model, **options):
        seen.update(options, model=model)
        raise RecordedError

    monkeypatch.setattr(Segmenter, "load", loading)
    with pytest.raises(RecordedError):
        predict(scan, "some.safetensors", tmp_path / "out", **OPTIONS)
    assert seen == {"model": "some.safetensors", **OPTIONS}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_loaded_segmenter_keeps_its_options(model, scan, tmp_path, name):
    segmenter = Segmenter.load(model, device="cpu")
    with pytest.raises(UsageError, match=f"keeps its own {name}. Set"):
        predict(scan, segmenter, tmp_path / "out", **{name: OPTIONS[name]})


def test_predict_finds_the_cases_that_were_asked_for(monkeypatch, model, tmp_path):
    seen = []

    def finding(*given):
        seen.append(given)
        raise RecordedError

    monkeypatch.setattr("volseg.api.predict.find_cases", finding)
    with pytest.raises(RecordedError):
        predict(["a", "b"], model, tmp_path / "out", series="1.2", volume=3, untilt=True)
    with pytest.raises(RecordedError):
        predict(None, model, tmp_path / "out", channels={"MRI": "x.nii"})
    assert seen == [
        ([Path("a"), Path("b")], ("MRI",), None, Choice(series="1.2", volume=3, untilt=True)),
        ([], ("MRI",), {"MRI": Path("x.nii")}, Choice()),
    ]


@pytest.mark.parametrize(("overwrite", "skip_existing"), [(True, False), (False, True), (False, False)])
def test_predict_plans_its_files(monkeypatch, model, scan, tmp_path, overwrite, skip_existing):
    seen = []

    def planning(*given):
        seen.append(given)
        raise RecordedError

    monkeypatch.setattr("volseg.api.predict.plan_outputs", planning)
    with pytest.raises(RecordedError):
        predict(
            scan, model, tmp_path / "out", overwrite=overwrite, skip_existing=skip_existing, probabilities=True,
            preview=True,
        )  # fmt: skip
    cases, output, *flags, suffixes, _ = seen[0]
    assert [case.paths for case in cases] == [(scan,)]
    assert isinstance(cases[0], Case)
    assert (output, flags) == (tmp_path / "out", [overwrite, skip_existing])
    assert suffixes == [".probabilities.npy", ".png"]


def test_progress_of_predict_counts_cases(model, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    for seed in range(3):
        nibabel.save(nibabel.Nifti1Image(blob(seed=seed), AFFINE), scans / f"scan{seed}.nii.gz")
    told = []
    done = list(predict(scans, model, tmp_path / "out", device="cpu", progress=lambda *said: told.append(said)))
    assert [one.name for one in done] == ["scan0", "scan1", "scan2"]
    assert {stage for stage, *_ in told} == {"segment"}
    fractions = [fraction for _, fraction, _ in told]
    assert fractions[-1] == pytest.approx(1.0)
    assert 0 < min(fractions) <= 1 / 3
    # Small scans are computed side by side.
    assert {text.partition(",")[0] for *_, text in told} <= {"scan0", "scan1", "scan2"}
    assert told[-1][2].startswith("scan2, ")
