"""A tiny run that tests share: phantoms, a network of a few thousand weights, a handful of steps."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from volseg.config import Channel, Label, NetworkConfig, Plan
from volseg.modelfile import ModelCard, save_model
from volseg.networks import UNet

TINY = (
    "plan.block=conv3d",
    "plan.blocks_per_stage=1",
    "plan.features=[4, 8]",
    "plan.patch_size=[16, 16, 16]",
    "plan.batch_size=2",
    "training.validations=2",
)


def tiny_plan(**changes) -> Plan:
    """A plan of two stages for one MR-like channel and the labels ball (1) and rod (2)."""
    network = NetworkConfig(
        classes=3,
        features=(4, 8),
        encoder_blocks=(1, 1),
        decoder_blocks=(1,),
        kernels=((3, 3, 3),) * 2,
        strides=((1, 1, 1), (2, 2, 2)),
    )
    values = {
        "dataset": "tiny",
        "channels": (Channel(name="MRI"),),
        "labels": (Label(name="ball", value=1), Label(name="rod", value=2)),
        "spacing_mm": (2.0, 1.5, 1.5),
        "patch_size": (16, 16, 16),
        "network": network,
    }
    return Plan(**{**values, **changes})


def write_model(
    path: Path, plan: Plan | None = None, seed: int = 0, weights: dict[str, torch.Tensor] | None = None
) -> Path:
    """A model file with random weights, or these."""
    plan = plan or tiny_plan()
    torch.manual_seed(seed)
    save_model(path, ModelCard(name="tiny", plan=plan), weights or UNet(plan.network).state_dict())
    return path


def volseg(*arguments: object, **options) -> "subprocess.CompletedProcess[str]":
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "volseg", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment(), **options)


def torchrun(*program: object) -> list[str]:
    """The command that starts two processes of a program together; they talk over the loopback interface."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2")
    return [sys.executable, *launcher, *map(str, program)]


def environment() -> dict[str, str]:
    """One thread per process, so that sums are made in one order and tests do not crowd the machine."""
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": loopback}


def is_running(pid: int) -> bool:
    """Whether a process is there, other than as an entry that nobody has collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def same_weights(one: Path, other: Path) -> bool:
    """Whether two model files hold the same weights, bit for bit."""
    ours, theirs = load_file(one), load_file(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def leftovers(folder: Path) -> list[Path]:
    """Temporary files that a writer left behind."""
    return list(folder.rglob(".*tmp*"))


def blob(shape=(20, 24, 18), seed=0) -> np.ndarray:
    """A smooth random scan, int16."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.normal(size=(1, 1, 5, 6, 4)))
    smooth = torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear", align_corners=True)
    return (300 * smooth[0, 0].numpy() + 500).astype(np.int16)
