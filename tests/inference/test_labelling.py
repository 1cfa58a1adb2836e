"""What a `Labeller` hands to the engine."""

import re
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import volseg
from tests.pipeline import tiny_plan
from volseg.config import Label, Resampling
from volseg.data.grid.geometry import Geometry
from volseg.data.grid.preprocess import image_to_network
from volseg.inference import labelling
from volseg.inference.budget import SLAB_LOGITS_PER_VOXEL, ChunkSize
from volseg.inference.labelling import Labeller
from volseg.inference.upsample import last_present, winner
from volseg.inference.windows import Windows
from volseg.networks import UNet

AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])


class Zeros(torch.nn.Module):
    """Logits of zero for every class."""

    def __init__(self, classes):
        super().__init__()
        self.anchor, self.classes = torch.nn.Parameter(torch.zeros(1)), classes

    def forward(self, image):
        return image.new_zeros(len(image), self.classes, *image.shape[2:]) + self.anchor


def labelled(monkeypatch, plan, chunk=None, **options):
    """The engine, the target and the settings that a scan is labelled with, and the labels."""
    seen = {}
    segment, computing = labelling.segment, labelling.computing

    def segmenting(volume, engine, target):
        seen.update(engine=engine, target=target)
        yield from segment(volume, engine, target)

    def setting(*given):
        seen["computing"] = given
        return computing(*given)

    monkeypatch.setattr(labelling, "segment", segmenting)
    monkeypatch.setattr(labelling, "computing", setting)
    array = np.random.default_rng(0).normal(size=(20, 24, 18)).astype(np.float32)
    volume, grid = image_to_network([array], Geometry(array.shape, AFFINE), plan)
    windows = Windows(plan.patch_size, 0.25, 2, (1,))
    seen["windows"], seen["grid"] = windows, grid
    seen["labels"] = Labeller(Zeros(plan.network.classes), plan, windows, torch.float32).label(
        volume, grid, chunk=chunk, **options
    )
    return seen


def test_windows_chunks_and_precision_arrive_in_the_engine(monkeypatch):
    chunk = ChunkSize(1 << 12, keep_freed=False)
    told = []
    seen = labelled(monkeypatch, tiny_plan(), chunk, progress=lambda *said: told.append(said))
    engine, target = seen["engine"], seen["target"]
    assert engine.windows is seen["windows"]
    assert engine.device == torch.device("cpu")
    assert engine.slab_logits == SLAB_LOGITS_PER_VOXEL * (1 << 12)
    assert seen["computing"][0] is engine
    assert seen["computing"][2:] == (torch.float32, False)
    assert (target.shape, target.decide, target.sink) == (seen["grid"].box_shape, winner, None)
    assert {stage for stage, *_ in told} == {"segment"}
    counts = [tuple(map(int, text.removeprefix("window ").split(" of "))) for *_, text in told]
    assert [fraction for _, fraction, _ in told] == [done / total for done, total in counts]
    assert counts[-1][0] == counts[-1][1] > 1
    assert labelled(monkeypatch, tiny_plan())["computing"][3] == ChunkSize().keep_freed


@pytest.mark.parametrize(("size", "batch", "mirror", "fixed"), [(8, 1, (), False), (48, 1, (), True),
                                                                (48, 8, (), False), (48, 8, (0, 1), True)])  # fmt: skip
def test_cudnn_is_tuned_for_scans_of_many_windows(monkeypatch, size, batch, mirror, fixed):
    asked = []

    @contextmanager
    def tuned(device, fixed):
        asked.append(fixed)
        yield

    monkeypatch.setattr(labelling, "tuned_convolutions", tuned)
    # 11 x 5 x 5 windows of 8 voxels along 48, 24 and 24.
    volume = torch.zeros(1, size, 24, 24)
    labelling.sliding_window(volume, torch.nn.Identity().eval(), (8, 8, 8), batch_size=batch, mirror_axes=mirror)
    assert asked == [fixed]


def test_logits_do_not_depend_on_the_autocast_of_the_program_around(monkeypatch):
    torch.manual_seed(0)
    # More classes than features: the last layer follows the blending.
    network = UNet(in_channels=1, classes=12, features=[4, 8]).eval()
    volume = torch.randn(1, 20, 16, 12)
    expected = labelling.sliding_window(volume, network, (8, 8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        found = labelling.sliding_window(volume, network, (8, 8, 8))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("rule", ["scipy", "torch"])
@pytest.mark.parametrize("regions", [False, True])
def test_the_plan_decides_how_classes_are_decided_and_resampled(monkeypatch, rule, regions):
    changes = {"logits_resampling": Resampling(nearest=rule)}
    if regions:
        labels = (Label(name="all", value=1, parts=(1, 2)), Label(name="core", value=2, parts=(2,)))
        network = tiny_plan().network.model_copy(update={"classes": 2})
        changes |= {"regions": True, "labels": labels, "network": network}
    target = labelled(monkeypatch, tiny_plan(**changes))["target"]
    assert target.decide is (last_present if regions else winner)
    assert target.rule == rule


@pytest.mark.parametrize(("value", "kind"), [(255, np.uint8), (256, np.uint16)])
def test_labels_are_of_the_smallest_type_that_holds_them(monkeypatch, value, kind):
    labels = (Label(name="ball", value=1), Label(name="rod", value=value))
    assert labelled(monkeypatch, tiny_plan(labels=labels))["labels"].dtype == kind


def test_windows_are_computed_under_the_settings_of_their_precision_wherever_they_are_streamed():
    package = Path(volseg.__file__).parent
    loops = {}
    for path in package.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        if found := re.findall(r"\bin (?:to_host\()?(?:stream_logits|segment)\(", source):
            loops[path.name] = len(found), source.count("computing(engine, volume, ")
    assert loops == {"labelling.py": (2, 2), "orientation.py": (1, 1), "kept_labels.py": (1, 1)}
