"""Check the installation: device, memory, versions, known-bad combinations."""

import os
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import torch

from volseg.device import choose_device, device_name, machine_memory_gb
from volseg.precision import CUDNN_ADVICE, autocast, choose_precision, cudnn_is_sound, exact_float32, precision_name
from volseg.system import tightest_limit

PACKAGES = ("volseg", "torch", "nibabel", "SimpleITK", "numpy", "pydicom", "highdicom")
# Of a convolution, as a share of its largest value; bfloat16 rounds by 2 ** -9.
LARGEST_ERROR = 2e-2


class Finding(NamedTuple):
    """The result of one check; the verdict is "ok" or what to do."""

    what: str
    found: str
    verdict: str = "ok"


def examine() -> list[Finding]:
    """Check device, memory, disk and versions; a known-bad combination has a verdict other than "ok"."""
    device = choose_device()
    precision = choose_precision("auto", device)
    return [
        Finding("python", sys.version.split()[0]),
        *(Finding(package, version(package)) for package in PACKAGES),
        _optional("monai", "only training needs it"),
        _optional("pynetdicom", "only volseg node needs it"),
        Finding("device", f"{device} ({device_name(device)})"),
        Finding("precision", precision_name(precision)),
        Finding("threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores"),
        _memory(),
        _cudnn(device),
        _convolution(device, precision),
        _temporary_folder(),
    ]


def _optional(package: str, need: str) -> Finding:
    """A package that some installations do without."""
    try:
        return Finding(package, version(package))
    except PackageNotFoundError:
        return Finding(package, f"not installed, {need}")


def _memory() -> Finding:
    total, tightest = machine_memory_gb(), tightest_limit()
    free = "" if tightest is None else f", {tightest.free / 2**30:.1f} GiB free: {tightest.source}"
    return Finding("memory", f"{total:.1f} GiB{free}", "ok" if total >= 4 else "training needs at least 4 GiB")


def _cudnn(device: torch.device) -> Finding:
    if device.type != "cuda":
        return Finding("cudnn", "not used")
    sound = cudnn_is_sound(device)
    return Finding("cudnn", str(torch.backends.cudnn.version()), "ok" if sound else CUDNN_ADVICE)


def _convolution(device: torch.device, dtype: torch.dtype) -> Finding:
    """Compare a convolution with float32 on the CPU: this PyTorch build may not support the GPU."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 16, 20, 20, 20, generator=generator)
    kernel = torch.randn(16, 16, 3, 3, 3, generator=generator)
    expected = torch.nn.functional.conv3d(image, kernel)
    try:
        with autocast(device, dtype), exact_float32(device, dtype):
            found = torch.nn.functional.conv3d(image.to(device), kernel.to(device)).float().cpu()
    except RuntimeError as error:
        return Finding(
            "convolution", str(error).splitlines()[0], "use --device cpu, or install a PyTorch build for this GPU"
        )
    relative_error = float((found - expected).abs().max() / expected.abs().max())
    verdict = "ok" if relative_error < LARGEST_ERROR else "use --precision fp32"
    return Finding("convolution", f"error {relative_error:.0e}", verdict)


def _temporary_folder() -> Finding:
    with tempfile.NamedTemporaryFile() as handle:
        handle.write(b"volseg")
    return Finding("temporary folder", tempfile.gettempdir())
