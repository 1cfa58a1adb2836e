"""What volseg finds on this machine, and whether it can work with it."""

import os
import platform
import sys
import tempfile
from importlib.metadata import version
from typing import NamedTuple

import torch

from volseg.device import DTYPES, choose_device, choose_precision

PACKAGES = ("volseg", "torch", "monai", "nibabel", "SimpleITK", "numpy")


class Finding(NamedTuple):
    """One thing that was looked at; the verdict is "ok" or what to do."""

    what: str
    found: str
    verdict: str = "ok"


def examine() -> list[Finding]:
    """Look at the device, memory, disk and versions; known-bad combinations have a verdict other than "ok"."""
    device = choose_device()
    precision = choose_precision("auto", device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return [
        Finding("python", sys.version.split()[0]),
        *(Finding(package, version(package)) for package in PACKAGES),
        Finding("device", f"{device} ({name})"),
        Finding("precision", next(short for short, dtype in DTYPES.items() if dtype == precision)),
        Finding("threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores"),
        _memory(),
        _cudnn(device),
        _writing(),
    ]


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Finding("memory", f"{total:.1f} GiB", "ok" if total >= 4 else "training wants at least 4 GiB")


def _cudnn(device: torch.device) -> Finding:
    """cuDNN 9.8 to 9.14 computes bf16 3-D convolutions wrongly or slowly (pytorch issues 163539, 166643)."""
    if device.type != "cuda":
        return Finding("cudnn", "not used")
    found = torch.backends.cudnn.version() or 0
    bad = 90800 <= found < 91500
    return Finding("cudnn", str(found), "update cuDNN to 9.15 or later, or use --precision fp32" if bad else "ok")


def _writing() -> Finding:
    with tempfile.NamedTemporaryFile() as handle:
        handle.write(b"volseg")
    return Finding("temporary folder", tempfile.gettempdir())
