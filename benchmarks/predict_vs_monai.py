"""Sliding windows: volseg's engine against MONAI's `sliding_window_inference`, same network, windows and precision.

    python benchmarks/predict_vs_monai.py [--repeats 3] [--toy] [--record]

Sliding windows alone: all sides start from one normalised volume in memory (112 x 121 x 101 voxels, a CT of the torso
at 3 mm) and end with its labels, with Gaussian weights and an overlap of 0.5, in float32 and in the precision that
volseg chooses. MONAI runs with 1, 2 and 4 windows per batch; "volseg" is the engine of `volseg predict`, which gives
labels slab by slab, and "sliding_window" is `volseg.inference.sliding_window`, which gives logits as MONAI does. Each
side runs in its own process, one after the other. Needs volseg and MONAI 1.6.
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from common.record import publish, record_options
from common.results import Row, headline
from common.sides import Side, compared, report_side, run_side
from monai.inferers import sliding_window_inference

from volseg.config import Channel, Label, NetworkConfig, Plan
from volseg.data.grid.geometry import Geometry
from volseg.data.grid.preprocess import image_to_network
from volseg.inference import sliding_window
from volseg.inference.labelling import Labeller
from volseg.inference.windows import Windows
from volseg.networks import UNet
from volseg.precision import DTYPES, autocast, choose_precision, precision_name

CPU = torch.device("cpu")
CLASSES = 15
BATCHES = (1, 2, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--toy", action="store_true", help="a small volume and network, for a quick check")
    record_options(parser)
    parser.add_argument("--side", nargs=3, metavar=("NAME", "PRECISION", "BATCH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side, precision, batch = options.side
        report_side(work_of(side, DTYPES[precision], int(batch), options.toy), options.repeats)
        return
    own = choose_precision("auto", CPU)
    toy = ["--toy"] * options.toy
    sides = {
        f"{side}, {precision}" + f", batch {batch}" * (side == "MONAI"): run_side(
            [__file__, f"--repeats={options.repeats}", *toy, "--side", side, precision, str(batch)]
        )
        for precision, dtype in DTYPES.items()
        if dtype in (torch.float32, own)
        for side, batch in (*(("MONAI", batch) for batch in BATCHES), ("volseg", 1), ("sliding_window", 1))
    }
    title = f"Sliding windows against MONAI: {CLASSES} classes{', toy' * options.toy}"
    note = "Both sides have volseg's network; the overview shows MONAI's fastest batch size in the same precision."
    publish(options, "windows-monai", title, [compared(sides, "MONAI, fp32, batch 1")], headlines(sides), note)


def headlines(sides: dict[str, Side]) -> list[Row]:
    """volseg in each precision against MONAI's fastest batch size in the same precision."""
    found = []
    for precision in DTYPES:
        theirs = {name: side.seconds for name, side in sides.items() if name.startswith(f"MONAI, {precision},")}
        if theirs:
            fastest = min(theirs, key=theirs.__getitem__)
            found.append(headline(f"sliding windows, {precision}", f"volseg, {precision}", "seconds", fastest))
            logits = f"sliding_window, {precision}"
            found.append(headline(f"sliding windows to logits, {precision}", logits, "seconds", fastest))
    return found


def work_of(side: str, dtype: torch.dtype, batch: int, toy: bool) -> Callable[[], object]:
    """The function that one side times."""
    plan = plan_of(toy)
    torch.manual_seed(0)
    network = UNet(plan.network).eval().requires_grad_(False)
    shape = (56, 61, 51) if toy else (112, 121, 101)
    noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    volume, grid = image_to_network([noise], Geometry(shape, np.diag([*plan.spacing_mm, 1.0])), plan)
    windows = Windows(plan.patch_size, overlap=0.5)

    def predict(window: torch.Tensor) -> torch.Tensor:
        with autocast(CPU, dtype):
            return network(window)

    def monai() -> torch.Tensor:
        logits = sliding_window_inference(volume[None], plan.patch_size, batch, predict, overlap=0.5, mode="gaussian")
        return logits.argmax(1).to(torch.uint8)

    def volseg() -> np.ndarray:
        return Labeller(network, plan, windows, dtype).label(volume, grid)

    def logits() -> torch.Tensor:
        found = sliding_window(volume, network, plan.patch_size, precision=precision_name(dtype))
        return found.argmax(0).to(torch.uint8)

    return torch.inference_mode()({"MONAI": monai, "volseg": volseg, "sliding_window": logits}[side])


def plan_of(toy: bool) -> Plan:
    """The network of the CT comparison with nnU-Net: five stages, patch 96^3, 403 GFLOP per window."""
    edge = 48 if toy else 96
    return Plan(
        dataset="monai",
        channels=(Channel(normalisation="none"),),
        labels=tuple(Label(name=f"label {value}", value=value) for value in range(1, CLASSES)),
        spacing_mm=(3.0, 3.0, 3.0),
        patch_size=(edge, edge, edge),
        network=NetworkConfig(
            classes=CLASSES,
            features=(4, 8, 16, 32, 32) if toy else (32, 64, 128, 256, 320),
            encoder_blocks=(2,) * 5,
            decoder_blocks=(2,) * 4,
            kernels=((3, 3, 3),) * 5,
            strides=((1, 1, 1), *((2, 2, 2),) * 4),
        ),
    )


if __name__ == "__main__":
    main()
