"""Tensors as scans, probabilities in memory, representations, and forked processes."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from tests.pipeline import blob, tiny_plan, write_model
from volseg import Segmenter
from volseg.data.io.reading import scan_from_array
from volseg.errors import InputError, UsageError
from volseg.inference.budget import ChunkSize, MemoryEstimate

AFFINE = np.diag([-1.5, 1.5, 2.1, 1.0])


@pytest.fixture
def segmenter(tmp_path):
    return Segmenter.load(write_model(tmp_path / "m.safetensors"), device="cpu", precision="fp32")


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16, torch.bfloat16])
@pytest.mark.parametrize(
    "form",
    [
        lambda scan: MetaTensor(scan[None], affine=torch.from_numpy(AFFINE)),
        lambda scan: MetaTensor(scan, affine=torch.from_numpy(AFFINE)),
        lambda scan: (scan, torch.from_numpy(AFFINE)),
        lambda scan: (scan, AFFINE),
    ],
    ids=["MetaTensor with channel", "MetaTensor", "tensors", "tensor and array"],
)
def test_tensors_are_segmented_as_the_array_of_their_values(segmenter, form, dtype):
    scan = torch.from_numpy(blob((24, 20, 30))).to(dtype)
    expected = segmenter((scan.float().numpy(), AFFINE))
    found = segmenter(form(scan))
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.volumes_ml == expected.volumes_ml
    assert np.array_equal(found.scan.geometry.affine, AFFINE)
    assert len(np.unique(found.labels)) > 1


def test_a_tensor_with_a_gradient_is_a_scan_too(segmenter):
    scan = torch.from_numpy(blob((24, 20, 30))).float().requires_grad_()
    assert segmenter((scan, AFFINE)).labels.shape == (24, 20, 30)


def test_a_meta_tensor_with_the_wrong_channels_is_rejected(segmenter):
    scan = MetaTensor(torch.zeros(2, 24, 20, 30), affine=torch.eye(4))
    with pytest.raises(InputError, match="so 2 channels, but the model has 1"):
        segmenter(scan)


def test_a_tensor_without_an_affine_is_rejected_with_what_is_expected(segmenter):
    with pytest.raises(UsageError, match=r"Cannot segment a Tensor: expected a path, .* or .array, affine."):
        segmenter(torch.zeros(24, 20, 30))


@pytest.mark.parametrize("shape", [(24, 20, 30), (30, 24, 20)])
def test_probabilities_in_memory_are_those_on_disk(tmp_path, segmenter, shape):
    scan = (blob(shape), AFFINE)
    segmenter(scan, probabilities=tmp_path / "p.npy")
    result = segmenter(scan, probabilities=True)
    assert (result.probabilities.dtype, result.probabilities.shape) == (np.float16, (3, *shape))
    np.testing.assert_array_equal(result.probabilities, np.load(tmp_path / "p.npy"))
    assert segmenter(scan).probabilities is None
    assert segmenter(scan, probabilities=False).probabilities is None


def test_probabilities_outside_the_crop_are_background(tmp_path):
    path = write_model(tmp_path / "m.safetensors", tiny_plan(crop="nonzero"))
    segmenter = Segmenter.load(path, device="cpu", precision="fp32")
    scan = np.zeros((40, 30, 20), np.float32)
    scan[10:30, 8:22, 4:16] = blob((20, 14, 12))
    found = segmenter((scan, AFFINE), probabilities=True).probabilities
    outside = np.ones(scan.shape, bool)
    outside[10:30, 8:22, 4:16] = False
    assert (found[0][outside] == 1).all()
    assert (found[1:, outside] == 0).all()


def test_probabilities_in_memory_count_in_the_planned_memory(segmenter):
    scan = scan_from_array(blob((24, 20, 30)), AFFINE)
    need = [
        MemoryEstimate(
            segmenter.card, scan, segmenter.labeller.windows, torch.float32, torch.device("cpu"), wanted
        ).parts(ChunkSize())
        for wanted in (False, True)
    ]
    more = {stage: need[1][stage] - need[0][stage] for stage in need[0]}
    assert set(more.values()) == {0, 2 * 3 * 24 * 20 * 30}
    assert more["preprocessing"] == 0


def test_probabilities_beyond_the_machine_are_rejected_with_the_way_out(segmenter, monkeypatch):
    monkeypatch.setattr("volseg.inference.budget.machine_memory_gb", lambda: 6e-4)
    scan = (blob((48, 48, 48)), np.diag([1.5, 1.5, 2.0, 1.0]))
    assert segmenter(scan).labels.shape == (48, 48, 48)
    with pytest.raises(InputError, match="Write them to a file: probabilities="):
        segmenter(scan, probabilities=True)


def test_representations_are_one_short_line(segmenter):
    result = segmenter((blob((24, 20, 30)), AFFINE))
    for text in (repr(segmenter), repr(result)):
        assert "\n" not in text
        assert len(text) < 200
    assert repr(segmenter).startswith("<volseg.Segmenter tiny on cpu, fp32: ")
    assert repr(result).startswith("<volseg.Result 24 x 20 x 30, ")


FORKED = """
import os, sys
import numpy as np
import torch
from volseg import Segmenter
from volseg.inference import sliding_window

torch.set_num_threads(2)
segmenter = Segmenter.load(sys.argv[1], device="cpu", precision="fp32")
rng = np.random.default_rng(0)
scan = (rng.normal(size=(40, 40, 40)).astype(np.float32), np.diag([1.5, 1.5, 2.0, 1.0]))
expected = segmenter(scan).labels  # starts the thread pools
child = os.fork()
if child == 0:
    single = np.array_equal(segmenter(scan).labels, expected)
    own = np.array_equal(Segmenter.load(sys.argv[1], device="cpu", precision="fp32")(scan).labels, expected)
    windows = sliding_window(torch.rand(1, 20, 20, 20), torch.nn.Conv3d(1, 2, 3, padding=1).eval(), (8, 8, 8))
    single = single and own and windows.shape == (2, 20, 20, 20)
    many = [np.array_equal(outcome.result.labels, expected) for outcome in segmenter.map([scan, scan])]
    os._exit(0 if single and all(many) and torch.get_num_threads() == 1 else 1)
_, status = os.waitpid(child, 0)
assert torch.get_num_threads() == 2
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="fork is not used elsewhere")
def test_a_forked_process_segments_on_one_thread(tmp_path):
    model = write_model(tmp_path / "m.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(model)], timeout=300, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "This process was forked, so it computes on one thread" in done.stderr


FORKED_FIRST = """
import os, sys
import numpy as np
import torch
from volseg import Segmenter
from volseg.inference import sliding_window

torch.set_num_threads(2)
network = torch.nn.Conv3d(1, 8, 3, padding=1).eval()
sliding_window(torch.rand(1, 40, 40, 40), network, (32, 32, 32))  # starts the thread pools
child = os.fork()
if child == 0:
    scan = (np.random.default_rng(0).normal(size=(40, 40, 40)).astype(np.float32), np.diag([1.5, 1.5, 2.0, 1.0]))
    sliding_window(torch.rand(1, 40, 40, 40), network, (32, 32, 32))
    os._exit(0 if Segmenter.load(sys.argv[1], device="cpu")(scan).labels.shape == (40, 40, 40) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="fork is not used elsewhere")
def test_a_model_loaded_in_a_forked_process_segments_on_one_thread(tmp_path):
    model = write_model(tmp_path / "m.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", FORKED_FIRST, str(model)], timeout=300, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "This process was forked, so it computes on one thread" in done.stderr


def test_map_does_not_take_a_path_for_its_letters(segmenter):
    with pytest.raises(UsageError, match=r"takes several scans, found one path: scan.nii.gz"):
        list(segmenter.map("scan.nii.gz"))
