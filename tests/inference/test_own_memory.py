"""The memory of a network of one's own: measured with one window, and planned from that."""

import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from tests.pipeline import environment, tiny_plan
from volseg import Segmenter
from volseg.api import segmenter as api
from volseg.errors import InputError, UsageError
from volseg.inference.budget import plan_chunks, scans_at_once, windows_at_once
from volseg.modelfile import ModelCard, save_model
from volseg.networks import UNet
from volseg.networks.measured import window_bytes
from volseg.system import peak_memory_bytes, resident_bytes

FLOAT = 4


def own_plan(edge, architecture="custom"):
    plan = tiny_plan(patch_size=(edge,) * 3, spacing_mm=(1.0, 1.0, 1.0))
    return plan.model_copy(update={"network": plan.network.model_copy(update={"architecture": architecture})})


class Two(nn.Module):
    """Two convolutions; while the second is computed, its input and its output are there."""

    def __init__(self, plan, features=16) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, features, 3, padding=1)
        self.second = nn.Conv3d(features, features, 3, padding=1)
        self.last = nn.Conv3d(features, plan.network.classes, 1)

    def forward(self, x):
        return self.last(self.second(self.first(x)))


def test_what_is_alive_at_once_is_counted():
    plan, voxels = own_plan(16), 16**3
    network = Two(plan).eval()
    # The window and the maps before and after the second convolution.
    assert window_bytes(network, plan, torch.float32) == FLOAT * voxels * (1 + 16 + 16)
    # Autocast has the window twice, and weights in bfloat16, too.
    weights = sum(one.numel() for one in network.parameters())
    half = window_bytes(network, plan, torch.bfloat16)
    assert 0 <= half - 2 * voxels * (2 + 16 + 16) <= 2 * voxels + 2 * weights
    assert window_bytes(UNet(plan.network).eval(), own_plan(16, "unet"), torch.float32) is None


def test_a_network_that_gives_no_logits_is_refused_when_it_is_loaded():
    plan = own_plan(16)
    with pytest.raises(UsageError, match=r"returned \(1, 2, 16, 16, 16\)"):
        window_bytes(nn.Conv3d(1, 2, 1).eval(), plan, torch.float32)
    with pytest.raises(UsageError, match="returned a list in evaluation mode"):
        window_bytes(Wrapped(nn.Conv3d(1, 3, 1)).eval(), plan, torch.float32)


class Wrapped(nn.Module):
    def __init__(self, inner) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return [self.inner(x)]


def test_windows_and_scans_are_computed_one_at_a_time():
    plan = own_plan(16)
    assert windows_at_once(plan, torch.float32, torch.device("cuda")) == 1
    assert windows_at_once(plan, torch.float32, torch.device("cpu")) == 1
    assert scans_at_once(plan, torch.float32, torch.device("cpu")) == 1


def stored(path, plan, features):
    save_model(path, ModelCard(name="own", plan=plan), Two(plan, features).state_dict())
    return path


def test_what_does_not_fit_a_limit_is_refused(tmp_path):
    plan = own_plan(64)
    model = stored(tmp_path / "m.safetensors", plan, 64)
    limit = resident_bytes() + 150 * 2**20
    segmenter = Segmenter.load(
        model, device="cpu", precision="fp32", network=partial(Two, features=64), max_memory=limit
    )
    assert segmenter.window_bytes == FLOAT * 64**3 * (1 + 64 + 64)
    with pytest.raises(InputError, match="--max-memory"):
        segmenter((np.random.default_rng(0).normal(size=(64, 64, 64)).astype(np.float32), np.eye(4)))


def test_what_is_planned_holds(tmp_path):
    """In a process of its own, because the peak is that of its whole life."""
    stored(tmp_path / "m.safetensors", own_plan(96), 16)
    command = [sys.executable, "-m", "tests.inference.test_own_memory", str(tmp_path / "m.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["measured"] <= found["planned"] <= 2.5 * found["measured"]


def main(model: str) -> None:
    """Print what was planned and what was measured, in bytes."""
    torch.set_num_threads(1)
    found = {}
    # Measuring would raise the peak already.
    api.window_bytes = lambda *_: FLOAT * 96**3 * (1 + 16 + 16)

    def planned(*need):
        plan, most = plan_chunks(*need)
        found.update(used=resident_bytes(), planned=most)
        return plan, most

    api.plan_chunks = planned
    segmenter = Segmenter.load(model, device="cpu", precision="fp32", network=Two)
    segmenter((np.random.default_rng(0).normal(size=(96, 96, 110)).astype(np.float32), np.eye(4)))
    sys.stdout.write(json.dumps({**found, "measured": peak_memory_bytes() - found["used"]}))


if __name__ == "__main__":
    main(sys.argv[1])
