"""CPU seconds of each stage of predicting a CT, and whether the stages of several scans overlap.

    python benchmarks/stages.py [--simulate 0.02 0.4] [--scans 20] [--cores 2] [--against CHECKOUT] [--record]

A synthetic CT of 512 x 512 x 200 voxels (.nii.gz, int16, 0.8 x 0.8 x 1.5 mm) is segmented at 3 mm into 15 classes by a
network whose answers are known beforehand, so that windows cost nothing: what is left is the work of the host. The
first table has its CPU seconds (of all threads, not wall time) stage by stage, the scan alone on one thread, file to
file; with --against those of another checkout of volseg too, in turn. The second has folders of such scans with a
simulated device, which takes --simulate seconds for all windows of a scan and leaves the CPU alone meanwhile: stages
that overlap perfectly take the larger of the device's time and the CPU seconds divided by the cores.

A GPU blends and resamples logits itself, so that the labels stage of the host is shorter there.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common.record import publish, record_options
from common.results import Row, headline, ratio, rounded, table
from data.abdomen import organ_logits, write_abdomen
from torch import nn

import volseg
from volseg.api import segmenter as api
from volseg.api.segmenter import Segmenter
from volseg.config import Channel, ComponentRule, Label, NetworkConfig, Plan, Resampling
from volseg.data.grid.preprocess import image_to_network
from volseg.inference import budget
from volseg.inference.labelling import Labeller
from volseg.inference.quality import measure, scan_flags
from volseg.inference.windows import Windows
from volseg.modelfile import ModelCard
from volseg.postprocessing.applying import postprocess

STAGES = ("read", "prepare", "labels", "components", "write")
CT_MEAN, CT_SD, CT_CLIP = 100.0, 150.0, (-1000.0, 3000.0)
# Windows of a network are told apart by some of their voxels.
PROBES = 997
# Memory of the simulated device.
GPU_BYTES = 140 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 200))
    parser.add_argument("--organs", type=int, default=14)
    parser.add_argument("--spacing", type=float, default=3.0, help="of the network, mm")
    parser.add_argument("--plain", action="store_true", help="resample without anti-aliasing, as nnU-Net does")
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--simulate", type=float, nargs="*", default=[], metavar="SECONDS")
    parser.add_argument("--scans", type=int, default=20)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--against", type=Path, help="another checkout of volseg, measured in turn with this one")
    record_options(parser)
    parser.add_argument("--toy", action="store_true", help="a small scan, for a quick check")
    parser.add_argument("--side", metavar="SECONDS", help=argparse.SUPPRESS)
    parser.add_argument("--scan", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.toy:
        options.shape, options.patch, options.scans, options.repeats = (96, 80, 60), 32, 4, 1
    if options.side is not None:
        print(json.dumps(side_of(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "scan.nii.gz"
        write_abdomen(scan, tuple(options.shape), options.organs)
        compare(options, scan)


def compare(options: argparse.Namespace, scan: Path) -> None:
    """Measure all sides in turn, and publish them."""
    own = Path(__file__).parent.parent
    sides = {"volseg": own} | ({"before": options.against} if options.against else {})
    alone: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(options.repeats):
        for name, checkout in sides.items():
            alone[name].append(measured(options, checkout, scan, "alone"))
            print(name, alone[name][-1], file=sys.stderr)
    rows: list[Row] = []
    for stage in (*STAGES, "all"):
        row: Row = {"stage": stage}
        for name, found in alone.items():
            values = [sum(one.values()) if stage == "all" else one[stage] for one in found]
            row[f"CPU s, {name}"] = rounded(statistics.median(values))
        rows.append(row)
    ratios = [ratio("times as fast", "CPU s, volseg", over="CPU s, before")] if options.against else []
    tables = [table(rows, ratios, "CPU seconds of a scan")]
    pairs = [(seconds, name) for seconds in options.simulate for name in sides]
    folders = [folder_row(name, sides[name], seconds, options, scan) for seconds, name in pairs]
    if folders:
        least = ratio("times the least", "wall s", over="least s")
        tables.append(table(folders, [least], f"Folders of {options.scans} scans on {options.cores} cores"))
    size = " x ".join(map(str, options.shape))
    heads = [headline(f"CPU seconds of a CT of {size} voxels, windows apart", "all", "CPU s, volseg")]
    publish(options, "stages", "Stages of predicting: CPU seconds, and overlap", tables, heads)


def folder_row(name: str, checkout: Path, seconds: float, options: argparse.Namespace, scan: Path) -> Row:
    """A folder of scans on a simulated device."""
    found = measured(options, checkout, scan, str(seconds))
    print(name, seconds, found, file=sys.stderr)
    least = max(found["device"], found["cpu"] / options.cores)
    return {
        "side": f"{name}, {seconds:g} s a scan",
        "wall s": rounded(found["wall"]),
        "device s": rounded(found["device"]),
        "CPU s": rounded(found["cpu"]),
        "least s": rounded(least),
        "peak GiB": rounded(found["peak"] / 2**30),
    }


def measured(options: argparse.Namespace, checkout: Path, scan: Path, side: str) -> dict[str, float]:
    """What a process of its own measures with the volseg of a checkout."""
    given = ["--organs", options.organs, "--spacing", options.spacing, "--patch", options.patch]
    given += ["--scans", options.scans, *["--plain"] * options.plain]
    command = [sys.executable, __file__, *given, "--side", side, "--scan", scan]
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, text=True, check=True, cwd=checkout
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def side_of(options: argparse.Namespace) -> dict[str, float]:
    """CPU seconds of the stages of a scan alone, or of a folder of them on a simulated device."""
    torch.set_num_threads(1)
    network = Known(options.organs)
    segmenter = segmenter_with(network, options)
    segmenter(options.scan)
    network.recording = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.side == "alone":
            return stages(segmenter, options.scan, folder)
        return whole_folder(segmenter, network, options, folder)


def stages(segmenter: Segmenter, path: Path, folder: Path) -> dict[str, float]:
    """CPU seconds of each stage of one scan."""
    found, plan, card = {}, segmenter.card.plan, segmenter.card

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = work()
        found[stage] = time.process_time() - started
        return result

    segmenter(path).save(folder / "warm.nii.gz")
    scan = timed("read", lambda: segmenter._open(path)).scan
    volume, grid = timed("prepare", lambda: image_to_network(scan.channels, scan.geometry, plan))
    labels = timed("labels", lambda: segmenter.labeller.label(volume, grid))

    def components() -> None:
        postprocess(labels, plan.labels, card.postprocessing, scan.geometry.voxel_ml)
        measure(labels, plan.labels, scan.geometry.voxel_ml)
        scan_flags(scan.channels, plan.channels)

    timed("components", components)
    result = segmenter(path)
    timed("write", lambda: result.save(folder / "scan.nii.gz"))
    return found


def whole_folder(segmenter: Segmenter, network: "Known", options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Wall, CPU and device seconds of a folder of scans, and the peak memory of the process."""
    paths = [folder / f"scan{number:02}.nii.gz" for number in range(options.scans)]
    for path in paths:
        path.symlink_to(options.scan)
    network.seconds = float(options.side) / len(network.answers)
    as_for_gpu()
    wall, cpu = time.perf_counter(), time.process_time()
    done = list(volseg.predict(paths, segmenter, folder / "out"))
    assert len(done) == len(paths)
    assert not any(one.error for one in done), [one.error for one in done if one.error]
    return {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "device": network.busy,
        "peak": volseg.system.peak_memory_bytes(),
    }


def as_for_gpu() -> None:
    """Have this process plan the scans at work as for a GPU; checkouts that do not are left as they are."""
    for name in ("scans_at_once", "scans_at_device"):
        function = getattr(api, name, None)
        if function is not None and hasattr(budget, "scans_at_device"):
            setattr(api, name, lambda plan, dtype, _, function=function: function(plan, dtype, torch.device("cuda")))
    budget.free_gpu_memory = lambda _: GPU_BYTES


class Known(nn.Module):
    """Answers windows that it has seen while `recording`: at once, or after seconds in which it computes nothing else.

    As a GPU does, it leaves the CPU free meanwhile, and computes the windows of several threads one after the other.
    """

    def __init__(self, organs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.organs, self.recording, self.seconds, self.busy = organs, True, 0.0, 0.0
        self.answers: dict[tuple[float, ...], torch.Tensor] = {}
        self.device = threading.Lock()

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """(b, 1, d, h, w) to (b, classes, d, h, w)."""
        return torch.cat([self.one(window) for window in batch]) if len(batch) > 1 else self.one(batch[0])

    def one(self, window: torch.Tensor) -> torch.Tensor:
        """The logits of one window."""
        key = tuple(window.flatten()[:: window.numel() // PROBES].tolist())
        if self.recording and key not in self.answers:
            self.answers[key] = organ_logits(window[0] * CT_SD + CT_MEAN, self.organs)
        if self.seconds:
            with self.device:
                started = time.perf_counter()
                time.sleep(self.seconds)
                self.busy += time.perf_counter() - started
        return self.answers[key]


def segmenter_with(network: nn.Module, options: argparse.Namespace) -> Segmenter:
    """A model with a network of known answers."""
    labels = tuple(Label(name=f"organ {value}", value=value) for value in range(1, options.organs + 1))
    edge = options.patch
    plan = Plan(
        dataset="stages",
        channels=(Channel(normalisation="ct", mean=CT_MEAN, std=CT_SD, clip=CT_CLIP),),
        labels=labels,
        spacing_mm=(options.spacing,) * 3,
        image_resampling=Resampling(antialias=not options.plain),
        patch_size=(edge, edge, edge),
        network=NetworkConfig(
            classes=options.organs + 1,
            features=(32, 64, 128),
            encoder_blocks=(2,) * 3,
            decoder_blocks=(2,) * 2,
            kernels=((3, 3, 3),) * 3,
            strides=((1, 1, 1), *((2, 2, 2),) * 2),
        ),
    )
    rules = {label.name: ComponentRule(largest_only=True) for label in labels[: len(labels) // 2]}
    card = ModelCard(name="stages", plan=plan, postprocessing=rules)
    labeller = Labeller(network.eval(), plan, Windows(plan.patch_size), torch.float32)
    return Segmenter(card=card, sha256="0" * 64, labeller=labeller)


if __name__ == "__main__":
    main()
