"""The same answers on a GPU as on the CPU."""

import pytest
import torch

from tests.pipeline import TINY, blob, write_model
from volseg import Segmenter, train
from volseg.data.cases.phantom import write_phantoms

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_labels_agree_with_the_cpu(tmp_path):
    model = write_model(tmp_path / "tiny.safetensors")
    scan = (blob((40, 44, 38)), [[1.5, 0, 0, 0], [0, 1.5, 0, 0], [0, 0, 2.1, 0], [0, 0, 0, 1]])
    cpu = Segmenter.load(model, device="cpu", precision="fp32")(scan)
    gpu = Segmenter.load(model, device="cuda", precision="fp32")(scan)
    assert (cpu.labels == gpu.labels).mean() > 0.999


def test_a_run_trains_and_validates_on_the_gpu(tmp_path):
    write_phantoms(tmp_path / "data", count=5, seed=1, kind="mr")
    run = train(tmp_path / "data", tmp_path / "run", steps=3, overrides=TINY, device="cuda")
    assert (run / "validation.json").exists()
