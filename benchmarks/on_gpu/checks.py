"""The machine, and the tests that need a GPU."""

import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from on_gpu.common import Line, Setting
from volseg.api.doctor import examine

CHECKOUT = Path(__file__).parent.parent.parent


def doctor(setting: Setting) -> Iterator[Line]:
    """What `volseg doctor` finds, and the versions below PyTorch."""
    for finding in examine():
        yield {"what": finding.what, "found": finding.found, "verdict": finding.verdict}
    yield {"what": "CUDA of PyTorch", "found": torch.version.cuda}
    yield {"what": "cuDNN", "found": torch.backends.cudnn.version()}
    yield {"what": "kernel", "found": platform.release()}
    if setting.device.type == "cuda":
        asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        printed = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        yield {"what": "driver", "found": printed}


def tests(setting: Setting) -> Iterator[Line]:
    """`pytest -m gpu`; a dry run only collects them."""
    only = ["--collect-only"] if setting.dry else []
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rfEs", "-p", "no:cacheprovider", *only, "tests/gpu"]
    ran = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    print(ran.stdout, ran.stderr, file=sys.stderr)
    for line in ran.stdout.splitlines():
        if re.match("(FAILED|ERROR|SKIPPED)", line):
            yield {"test": line}
    lines = ran.stdout.strip().splitlines()
    yield {"exit code": ran.returncode, "summary": lines[-1] if lines else ""}
