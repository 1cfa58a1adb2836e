"""Peak memory of segmenting one long CT, and how it grows with the scan's length and the number of classes.

    python benchmarks/memory.py [--edge 512] [--length 1500] [--classes 118] [--append]

A random int16 scan of edge x edge x length voxels (0.8 x 0.8 x 1 mm) goes through an untrained network that works at
3 mm. Each case runs in a process of its own; input plus output is what cannot be avoided. Needs volseg only.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from sides import as_table, publish, report_side, run_side

from volseg import Segmenter
from volseg.config import Channel, Label, NetworkConfig, Plan
from volseg.modelfile import ModelCard, save_model
from volseg.networks import UNet

PATCH = (64, 64, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", type=int, default=512)
    parser.add_argument("--length", type=int, default=1500)
    parser.add_argument("--classes", type=int, default=118)
    parser.add_argument("--append", action="store_true", help="add the table to RESULTS.md")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one_case(options)
        return
    cases = [
        (options.length, options.classes),
        (options.length // 2, options.classes),
        (options.length, 10),
        (options.length // 2, 10),
    ]
    rows = []
    for length, classes in cases:
        given = [f"--edge={options.edge}", f"--length={length}", f"--classes={classes}", "--one"]
        found = run_side([__file__, *given])
        kept = options.edge**2 * length * 3 / 2**30
        rows.append(
            {
                "scan": f"{options.edge} x {options.edge} x {length}",
                "classes": classes,
                "seconds": f"{found['seconds']:.0f}",
                "peak GiB": f"{found['peak_gib']:.2f}",
                "input and output GiB": f"{kept:.2f}",
                "peak beyond them": f"{found['peak_gib'] - kept:.2f}",
            }
        )
    command = f"python benchmarks/memory.py --edge {options.edge} --length {options.length} --classes {options.classes}"
    publish("Memory of a long scan", command, as_table(rows), options.append)


def one_case(options: argparse.Namespace) -> None:
    """Segment one random scan; runs in a process of its own."""
    network = NetworkConfig(
        classes=options.classes,
        features=(4, 8, 16),
        encoder_blocks=(1, 1, 1),
        decoder_blocks=(1, 1),
        kernels=((3, 3, 3),) * 3,
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    )
    plan = Plan(
        dataset="memory",
        channels=(Channel(name="CT", normalisation="ct", clip=(-1000, 1000), mean=0, std=500),),
        labels=tuple(Label(name=f"label {index}", value=index) for index in range(1, options.classes)),
        spacing_mm=(3.0, 3.0, 3.0),
        patch_size=PATCH,
        network=network,
    )
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    scan = np.empty((options.edge, options.edge, options.length), dtype=np.int16, order="F")
    for index in range(options.length):
        scan[:, :, index] = rng.integers(-1000, 1000, (options.edge, options.edge), dtype=np.int16)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.safetensors"
        save_model(model, ModelCard(name="memory", plan=plan), UNet(network).state_dict())
        segmenter = Segmenter.load(model, device="cpu")
        started = [0]

        def work() -> None:
            # The warm-up run is left out: one case takes long enough.
            if started[0]:
                segmenter((scan, np.diag([0.8, 0.8, 1.0, 1.0])))
            started[0] += 1

        report_side(work, 1)


if __name__ == "__main__":
    main()
