"""Peak memory of segmenting one long CT, and how it depends on the scan's length and the number of classes.

    python benchmarks/memory.py [--edge 512] [--length 1500] [--classes 118] [--patch 96] [--record]

volseg's command line segments a random int16 scan of edge x edge x length voxels (0.8 x 0.8 x 1 mm, .nii), file to
file, with an untrained network at 3 mm. Input and output are unavoidable: 2 bytes and 1 byte per voxel. Needs volseg,
and 1.2 GB of disk space for temporary files.
"""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from common.record import publish, record_options
from common.results import Row, headline, rounded, table
from common.sides import Side, run_command

from volseg.config import Channel, Label, NetworkConfig, Plan
from volseg.modelfile import ModelCard, save_model
from volseg.networks import UNet

SPACING_MM = (0.8, 0.8, 1.0)
NETWORK_MM = 3.0
FEW_CLASSES = 10
LIMIT_GIB = 1.5
LIMIT_GROWTH = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", type=int, default=512)
    parser.add_argument("--length", type=int, default=1500)
    parser.add_argument("--classes", type=int, default=118)
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--precision", default="auto")
    record_options(parser)
    options = parser.parse_args()
    rows: list[Row] = []
    for length, classes in (
        (options.length, options.classes),
        (options.length // 2, options.classes),
        (options.length, FEW_CLASSES),
    ):
        shape = (options.edge, options.edge, length)
        rows.append(row(shape, classes, measure(shape, classes, options)))
        print(rows[-1], file=sys.stderr)
    scan = rows[0]["scan"]
    ring = ring_gib((options.edge, options.edge, options.length), options)
    publish(
        options,
        f"memory-{options.edge}-{options.edge}-{options.length}-{options.classes}-classes",
        "Memory of a long scan",
        [table(rows), limits(*(one["GiB beyond input and output"] for one in rows), ring)],
        [headline(f"peak memory, CT {scan}", scan, "peak GiB")],
    )


def row(shape: tuple[int, int, int], classes: int, side: Side) -> Row:
    """What one scan took."""
    stages = json.loads(side.printed)["cases"][0]["seconds"]
    kept = math.prod(shape) * 3 / 2**30
    return {
        "scan": f"{' x '.join(map(str, shape))}, {classes} classes",
        "seconds": rounded(side.seconds),
        "CPU seconds": rounded(side.cpu_seconds),
        **{f"{stage}, seconds": rounded(spent) for stage, spent in stages.items()},
        "peak GiB": rounded(side.peak_gib),
        "input and output GiB": rounded(kept),
        "GiB beyond input and output": rounded(side.peak_gib - kept),
    }


def limits(whole: float, half: float, few: float, ring: float) -> dict[str, Any]:
    """What was found of the memory beyond input and output, and what volseg promises."""
    found = {
        "GiB beyond input and output, whole scan": (whole, LIMIT_GIB),
        "change from the whole to half the length, %": (100 * (half / whole - 1), LIMIT_GROWTH),
        f"GiB that {FEW_CLASSES} classes save, at most the logits of the others": (whole - few, ring),
    }
    rows = [{"limit": name, "found": round(one, 2), "at most": round(most, 2)} for name, (one, most) in found.items()]
    return table(rows, caption="Limits")


def ring_gib(shape: tuple[int, int, int], options: argparse.Namespace) -> float:
    """Float32 logits of the classes beyond `FEW_CLASSES`, one patch deep along the longest axis."""
    *across, _ = sorted(round(size * mm / NETWORK_MM) for size, mm in zip(shape, SPACING_MM, strict=True))
    return (options.classes - FEW_CLASSES) * 4 * options.patch * math.prod(across) / 2**30


def measure(shape: tuple[int, int, int], classes: int, options: argparse.Namespace) -> Side:
    """Segment one random scan in its own process; the files are removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        scan, model, output = (Path(folder) / name for name in ("scan.nii", "model.safetensors", "labels.nii"))
        write_scan(scan, shape)
        write_model(model, classes, options.patch)
        paths = [scan, "--model", model, "--output", output]
        arguments = ["--device", "cpu", "--precision", options.precision, "--json"]
        return run_command([sys.executable, "-m", "volseg", "predict", *paths, *arguments])


def write_scan(path: Path, shape: tuple[int, int, int]) -> None:
    """A scan of noise, which gives speckled labels, the worst case."""
    voxels = np.random.default_rng(0).integers(-1000, 1000, shape, dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([*SPACING_MM, 1.0])), path)


def write_model(path: Path, classes: int, patch: int) -> None:
    """An untrained network with few features, so that it is fast."""
    network = NetworkConfig(
        classes=classes,
        features=(4, 8, 16),
        encoder_blocks=(1, 1, 1),
        decoder_blocks=(1, 1),
        kernels=((3, 3, 3),) * 3,
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    )
    plan = Plan(
        dataset="memory",
        channels=(Channel(name="CT", normalisation="ct", clip=(-1000, 1000), mean=0, std=500),),
        labels=tuple(Label(name=f"label {index}", value=index) for index in range(1, classes)),
        spacing_mm=(NETWORK_MM,) * 3,
        patch_size=(patch,) * 3,
        network=network,
    )
    torch.manual_seed(0)
    save_model(path, ModelCard(name="memory", plan=plan), UNet(network).state_dict())


if __name__ == "__main__":
    main()
