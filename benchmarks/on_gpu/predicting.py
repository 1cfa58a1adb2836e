"""Whole scans of 512 x 512 x 200 voxels: seconds by stage, many scans at a time, and little memory."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import torch

from on_gpu.common import Line, Setting, utilisation, write_model, write_scan
from volseg import Segmenter
from volseg.api.predict import predict
from volseg.errors import VolsegError

SHAPE = (512, 512, 200)
# What another program leaves of the memory of the device.
LEFT_GIB = 4
# Holds all but `LEFT_GIB` until its input ends.
HOLD = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
held = torch.empty(max(0, free - {left} * 2**30), dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
print("held", flush=True)
sys.stdin.read()
"""


def stages(setting: Setting) -> Iterator[Line]:
    """Seconds of each stage of one scan, for few and for many labels."""
    scan = setting.folder / "scan.nii.gz"
    write_scan(scan, setting.sized(SHAPE, (40, 36, 30)))
    for classes in setting.sized((14, 118), (3, 5)):
        segmenter = Segmenter.load(write_model(setting, classes), device=str(setting.device))
        for number in range(setting.sized(3, 1)):
            started, busy = time.perf_counter(), time.process_time()
            with utilisation(setting) as used:
                result = segmenter(scan)
            yield {
                "classes": classes,
                "run": number,
                "seconds": round(time.perf_counter() - started, 3),
                "CPU seconds": round(time.process_time() - busy, 3),
                **{f"{name}, seconds": spent for name, spent in result.record["seconds"].items()},
                "peak GiB": setting.peak_gib(),
                **used,
            }


def many(setting: Setting) -> Iterator[Line]:
    """A folder of scans against one scan at a time."""
    folder, count = setting.folder / "scans", setting.sized(20, 3)
    folder.mkdir()
    # Copies: to make one up takes longer than to segment it.
    write_scan(folder / "00.nii.gz", setting.sized(SHAPE, (40, 36, 30)))
    for number in range(1, count):
        shutil.copyfile(folder / "00.nii.gz", folder / f"{number:02}.nii.gz")
    segmenter = Segmenter.load(write_model(setting, setting.sized(14, 3)), device=str(setting.device))
    # What the first scan of a process takes beyond the others is not to count against one of the sides.
    segmenter(folder / "00.nii.gz")
    sides = {
        "one at a time": [[path] for path in sorted(folder.iterdir())[: setting.sized(5, 2)]],
        "folder": [sorted(folder.iterdir())],
    }
    for name, calls in sides.items():
        scans, started, busy = sum(map(len, calls)), time.perf_counter(), time.process_time()
        with utilisation(setting) as used:
            for number, paths in enumerate(calls):
                output = setting.folder / f"{name}-{number}"
                for outcome in predict(paths, segmenter, f"{output}/"):
                    if outcome.error:
                        raise outcome.error
        seconds = time.perf_counter() - started
        yield {
            "side": name,
            "scans": scans,
            "seconds per scan": round(seconds / scans, 3),
            "CPU seconds per scan": round((time.process_time() - busy) / scans, 3),
            "scans a minute": round(60 * scans / seconds, 1),
            "peak GiB": setting.peak_gib(),
            **used,
        }


def memory(setting: Setting) -> Iterator[Line]:
    """A scan while another program holds all but 4 GiB, with the windows planned for the whole device."""
    scan = setting.folder / "scan.nii.gz"
    write_scan(scan, setting.sized(SHAPE, (40, 36, 30)))
    segmenter = Segmenter.load(write_model(setting, setting.sized(14, 3)), device=str(setting.device))
    if setting.device.type != "cuda":
        yield {"skipped": "needs CUDA"}
        return
    before = segmenter(scan).labels
    torch.cuda.empty_cache()
    program = HOLD.format(left=LEFT_GIB)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout
        assert holder.stdin
        if holder.stdout.readline().strip() != "held":
            raise RuntimeError("the program that was to hold the memory has ended")
        line: Line = {"free GiB": round(torch.cuda.mem_get_info()[0] / 2**30, 2)}
        try:
            after = segmenter(scan).labels
            line |= {"outcome": "segmented", "labels equal": float((before == after).mean())}
        except VolsegError as error:
            line["outcome"] = str(error)
        holder.stdin.close()
    yield line | {"peak GiB": setting.peak_gib()}
