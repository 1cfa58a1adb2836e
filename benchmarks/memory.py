"""Peak memory of segmenting one long CT, and how it grows with the scan's length and the number of classes.

    python benchmarks/memory.py [--edge 512] [--length 1500] [--classes 118] [--patch 96] [--append]

A random int16 scan of edge x edge x length voxels (0.8 x 0.8 x 1 mm, .nii) goes through an untrained network that works
at 3 mm, file to file by volseg's command line. Input plus output is what cannot be avoided: 2 bytes and 1 byte a voxel.
Needs volseg, and 1.2 GB of room for temporary files.
"""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import torch
from sides import Side, as_table, publish, run_command

from volseg.config import Channel, Label, NetworkConfig, Plan
from volseg.modelfile import ModelCard, save_model
from volseg.networks import UNet

SPACING_MM = (0.8, 0.8, 1.0)
NETWORK_MM = 3.0
FEW_CLASSES = 10
LIMIT_GIB = 1.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", type=int, default=512)
    parser.add_argument("--length", type=int, default=1500)
    parser.add_argument("--classes", type=int, default=118)
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--append", action="store_true", help="add the table to RESULTS.md")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    extra: dict[str, float] = {}
    for kind, length, classes in (
        ("whole", options.length, options.classes),
        ("half", options.length // 2, options.classes),
        ("few", options.length, FEW_CLASSES),
    ):
        shape = (options.edge, options.edge, length)
        side = measure(shape, classes, options)
        kept = math.prod(shape) * 3 / 2**30
        extra[kind] = side.peak_gib - kept
        seconds = json.loads(side.printed)["cases"][0]["seconds"]
        rows.append(
            {
                "scan": " x ".join(map(str, shape)),
                "classes": classes,
                "seconds": f"{side.seconds:.0f}",
                "CPU seconds": f"{side.cpu_seconds:.0f}",
                "of which": ", ".join(f"{stage} {spent:.1f}" for stage, spent in seconds.items()),
                "peak GiB": f"{side.peak_gib:.2f}",
                "input and output GiB": f"{kept:.2f}",
                "peak beyond them": f"{extra[kind]:.2f}",
                "promise": promise(kind, extra, ring_gib(shape, options)),
            }
        )
        print(rows[-1], file=sys.stderr)
    chosen = {name: value for name, value in vars(options).items() if name != "append"}
    given = " ".join(f"--{name} {value}" for name, value in chosen.items())
    publish("Memory of a long scan", f"python benchmarks/memory.py {given}", as_table(rows), options.append)


def promise(kind: str, extra: dict[str, float], ring: float) -> str:
    """What was promised of the memory beyond input and output, and what was found."""
    if kind == "whole":
        return f"at most {LIMIT_GIB} GiB"
    if kind == "half":
        return f"within 10 % of the whole length: {extra['half'] / extra['whole'] - 1:+.1%}"
    return f"smaller by no more than the ring of all those logits ({ring:.2f} GiB): {extra['whole'] - extra['few']:.2f}"


def ring_gib(shape: tuple[int, int, int], options: argparse.Namespace) -> float:
    """Float32 logits of the classes that `FEW_CLASSES` lacks, one patch deep along the longest axis of the network."""
    *across, _ = sorted(round(size * mm / NETWORK_MM) for size, mm in zip(shape, SPACING_MM, strict=True))
    return (options.classes - FEW_CLASSES) * 4 * options.patch * math.prod(across) / 2**30


def measure(shape: tuple[int, int, int], classes: int, options: argparse.Namespace) -> Side:
    """Segment one random scan in a process of its own; the files are removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        scan, model, output = (Path(folder) / name for name in ("scan.nii", "model.safetensors", "labels.nii"))
        write_scan(scan, shape)
        write_model(model, classes, options.patch)
        paths = [scan, "--model", model, "--output", output]
        arguments = ["--device", "cpu", "--precision", options.precision, "--json"]
        return run_command([sys.executable, "-m", "volseg", "predict", *paths, *arguments])


def write_scan(path: Path, shape: tuple[int, int, int]) -> None:
    """A scan of noise, which makes speckled labels, the worst case."""
    voxels = np.random.default_rng(0).integers(-1000, 1000, shape, dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([*SPACING_MM, 1.0])), path)


def write_model(path: Path, classes: int, patch: int) -> None:
    """An untrained network, narrow so that it finishes soon."""
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
