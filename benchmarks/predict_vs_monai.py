"""Sliding windows: volseg's engine against MONAI's `sliding_window_inference`, same network, windows and precision.

    python benchmarks/predict_vs_monai.py [--size 160] [--classes 15] [--repeats 3] [--append]

Both start from one normalised volume in memory and end with a label volume of the same shape, with Gaussian weights
and half a window of overlap. Needs volseg and MONAI. The sides run in processes of their own, one after the other.
"""

import argparse

import torch
from monai.inferers import sliding_window_inference
from sides import as_table, publish, report_side, run_side

from volseg.config import NetworkConfig
from volseg.device import DTYPES, autocast
from volseg.inference.engine import segment
from volseg.inference.windows import Windows
from volseg.networks import UNet

PATCH = (64, 64, 64)
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--classes", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--append", action="store_true", help="add the table to RESULTS.md")
    parser.add_argument("--side", choices=["volseg", "monai"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        report_side(work_of(options), options.repeats)
        return
    given = [f"--{name}={getattr(options, name)}" for name in ("size", "classes", "repeats", "precision")]
    found = {side: run_side([__file__, *given, f"--side={side}"]) for side in ("monai", "volseg")}
    rows = [
        {
            "side": side,
            "seconds, median": f"{one['seconds']:.2f}",
            "peak GiB": f"{one['peak_gib']:.2f}",
            "CPU seconds, all": f"{one['cpu_seconds']:.1f}",
            "times as fast": f"{found['monai']['seconds'] / one['seconds']:.2f}",
        }
        for side, one in found.items()
    ]
    title = (
        f"Windows against MONAI: {options.size}^3 voxels, {options.classes} classes, patch 64^3, {options.precision}"
    )
    publish(title, f"python benchmarks/predict_vs_monai.py {' '.join(given)}", as_table(rows), options.append)


def work_of(options: argparse.Namespace):
    """The function that one side times."""
    torch.manual_seed(0)
    network = UNet(NetworkConfig(classes=options.classes, features=(16, 32, 64, 128))).eval()
    volume = torch.randn(1, options.size, options.size, options.size)

    def predict(window: torch.Tensor) -> torch.Tensor:
        with autocast(CPU, DTYPES[options.precision]):
            return network(window).float()

    def volseg() -> torch.Tensor:
        return segment(volume, predict, Windows(PATCH), tuple(volume.shape[1:]))

    def monai() -> torch.Tensor:
        logits = sliding_window_inference(volume[None], PATCH, 1, predict, overlap=0.5, mode="gaussian")
        return logits.argmax(1).to(torch.uint8)

    return torch.inference_mode()(volseg if options.side == "volseg" else monai)


if __name__ == "__main__":
    main()
