"""The same answers on a GPU as on the CPU; on the CPU itself, that the tests hold."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.pipeline import TINY, blob, environment, tiny_plan, write_model
from volseg import Segmenter, ensemble, train
from volseg.config import Label
from volseg.data.cases.phantom import write_phantoms

GPU = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
)
every_device = pytest.mark.parametrize("device", ["cpu", GPU])
AFFINE = np.diag([1.5, 1.5, 2.1, 1.0])
SCAN = (blob((28, 30, 26)), AFFINE)


def mirrored_plan(**changes):
    """The tiny plan with all flips."""
    return tiny_plan(mirror_axes=(0, 1, 2), **changes)


def region_plan():
    """The tiny plan with two labels that overlap."""
    whole, core = Label(name="whole", value=1, parts=(1, 2)), Label(name="core", value=2, parts=(2,))
    network = tiny_plan().network.model_copy(update={"classes": 2})
    return tiny_plan(labels=(whole, core), regions=True, network=network)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Models by kind."""
    folder = tmp_path_factory.mktemp("models")
    members = [write_model(folder / f"{seed}.safetensors", mirrored_plan(), seed=seed) for seed in range(5)]
    return {
        "one network": members[0],
        "five members": ensemble(members, folder / "five.safetensors"),
        "regions": write_model(folder / "regions.safetensors", region_plan()),
    }


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    """Five phantoms."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, count=5, seed=1, kind="mr")
    return folder


@every_device
@pytest.mark.parametrize(("kind", "tta"), [("one network", "mirror"), ("five members", "none"), ("regions", "none")])
@pytest.mark.parametrize(("precision", "agreeing"), [("fp32", 0.999), ("bf16", 0.97), ("fp16", 0.99)])
def test_labels_agree_with_those_of_the_cpu_in_float32(models, device, kind, tta, precision, agreeing):
    if device == "cpu" and precision == "fp16":
        pytest.skip("float16 is for GPUs")
    expected = Segmenter.load(models[kind], device="cpu", precision="fp32", tta=tta)(SCAN).labels
    found = Segmenter.load(models[kind], device=device, precision=precision, tta=tta)(SCAN).labels
    assert len(np.unique(expected)) > 1
    assert (found == expected).mean() > agreeing


@every_device
def test_probabilities_agree_with_those_of_the_cpu(models, device):
    sides = [
        Segmenter.load(models["one network"], device=one, precision="fp32")(SCAN, probabilities=True).probabilities
        for one in ("cpu", device)
    ]
    expected, found = (np.asarray(side, np.float32) for side in sides)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    np.testing.assert_allclose(found.sum(0), 1, atol=5e-3)


@every_device
def test_threads_that_share_a_model_get_what_one_gets(models, device):
    segmenter = Segmenter.load(models["one network"], device=device, precision="fp32")
    scans = [(blob((28, 30, 26), seed), AFFINE) for seed in range(4)]
    one_by_one = [segmenter(scan).labels for scan in scans]
    with ThreadPoolExecutor(2) as threads:
        together = [result.labels for result in threads.map(segmenter, scans)]
    for alone, shared in zip(one_by_one, together, strict=True):
        assert (alone == shared).mean() > 0.999


@every_device
def test_a_folder_gets_what_each_scan_gets(models, device):
    segmenter = Segmenter.load(models["one network"], device=device, precision="fp32")
    scans = [(blob((28, 30, 26), seed), AFFINE) for seed in range(3)]
    for scan, outcome in zip(scans, segmenter.map(scans), strict=True):
        assert (outcome.result.labels == segmenter(scan).labels).mean() > 0.999


@every_device
def test_a_run_repeats_itself(phantoms, device, tmp_path):
    settings = {"overrides": (*TINY, "training.precision=fp32"), "device": device, "fold": "all", "steps": 4}
    one, other = (load_file(train(phantoms, tmp_path / name, **settings) / "model.safetensors") for name in "ab")
    for name, weights in one.items():
        torch.testing.assert_close(other[name], weights, rtol=1e-3, atol=1e-3)


@every_device
def test_a_run_goes_on_from_its_checkpoint(phantoms, device, tmp_path):
    settings = {"overrides": TINY, "device": device, "fold": "all"}
    run = train(phantoms, tmp_path / "run", steps=3, **settings)
    before = load_file(run / "model.safetensors")
    train(phantoms, run, steps=5, resume=True, **settings)
    after = load_file(run / "model.safetensors")
    assert all(torch.isfinite(weights).all() for weights in after.values())
    assert any(not torch.equal(after[name], weights) for name, weights in before.items())
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5]


@every_device
def test_a_run_trains_and_validates(phantoms, device, tmp_path):
    run = train(phantoms, tmp_path / "run", steps=3, overrides=TINY, device=device)
    assert (run / "validation.json").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_killed_process_of_torchrun_ends_the_run_and_it_resumes(phantoms, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m", "volseg"]
    settings = [word for override in TINY for word in ("--set", override)]
    arguments = ["train", phantoms, "--output", tmp_path / "run", "--device", "cuda", "--fold", "all", *settings]
    command = [*launcher, *map(str, arguments), "--resume"]
    endless = subprocess.Popen(
        [*command, "--steps", "100000", "--set", "training.checkpoint_seconds=0.05"],
        env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (tmp_path / "run" / "checkpoint" / "state.safetensors").exists():
        time.sleep(0.05)
    (rank,) = Path(f"/proc/{endless.pid}/task/{endless.pid}/children").read_text().split()[:1]
    os.kill(int(rank), signal.SIGKILL)
    _, errors = endless.communicate(timeout=120)
    assert endless.returncode == 1, errors
    again = subprocess.run([*command, "--steps", "5"], env=environment(), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run" / "model.safetensors").exists()


@every_device
def test_a_group_of_one_process_averages_and_adds_up(device):
    """Over NCCL on a GPU; two processes would need two GPUs. A process of its own, as the group is the process's."""
    port = socket.create_server(("127.0.0.1", 0))
    group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    group["MASTER_PORT"] = str(port.getsockname()[1])
    port.close()
    program = f"""
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from volseg.training import ranks
joined, _ = ranks._connect(torch.device({device!r}))
joined.wait()
layer = DistributedDataParallel(torch.nn.Linear(3, 1).to({device!r}), static_graph=True)
for _ in range(3):
    layer.zero_grad()
    ranks.SumOverRanks.apply(layer(torch.ones(2, 3, device={device!r})).sum(), 1).backward()
print(dist.get_backend(), layer.module.weight.grad.flatten().tolist())
dist.destroy_process_group()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env={**environment(), **group}, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.stdout.split(maxsplit=1) == ["nccl" if device == "cuda" else "gloo", "[2.0, 2.0, 2.0]\n"], done.stderr
