"""The machine, and the tests that need a GPU."""

import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from on_gpu.common import Line, Setting, nvidia_smi
from volseg.api.doctor import examine

# What pytest prints of a test when it has ended, and at last of each that did not pass.
TEST = re.compile(r"(tests/.+?) (PASSED|FAILED|ERROR|SKIPPED)\b")
REASON = re.compile(r"(FAILED|ERROR|SKIPPED) ")
CHECKOUT = Path(__file__).parent.parent.parent


def doctor(setting: Setting) -> Iterator[Line]:
    """What `volseg doctor` finds, and the versions below PyTorch."""
    for finding in examine():
        yield {"what": finding.what, "found": finding.found, "verdict": finding.verdict}
    yield {"what": "CUDA of PyTorch", "found": torch.version.cuda}
    yield {"what": "cuDNN", "found": torch.backends.cudnn.version()}
    yield {"what": "kernel", "found": platform.release()}
    if setting.device.type == "cuda":
        printed = nvidia_smi("--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
        yield {"what": "driver", "found": printed or "no answer of nvidia-smi"}


def tests(setting: Setting) -> Iterator[Line]:
    """`pytest -m gpu`, a line for each test as soon as it has ended; a dry run only collects them."""
    only = ["--collect-only", "-q"] if setting.dry else ["-v", "-rfEs"]
    command = [sys.executable, "-u", "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", *only, "tests/gpu"]
    last = ""
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, errors="replace") as running:
        assert running.stdout
        for text in running.stdout:
            print(text, end="", file=sys.stderr)
            last = text.strip() or last
            if found := TEST.match(text):
                yield {"test": found[1], "outcome": found[2]}
            elif REASON.match(text):
                yield {"reason": last}
    yield {"exit code": running.returncode, "summary": last}
