"""One window through plain PyTorch modules, the same modules after torch.compile, and volseg's network, on the CPU.

    python benchmarks/compiled.py [--repeats 5] [--toy] [--record]

The U-Net and window of `predict_vs_monai.py` (32 to 320 features, 15 classes, 96^3 voxels), as MONAI's DynUNet and as
volseg's, without gradients. Medians after two warm-up runs; the first compiled run, which compiles, is timed
separately. Needs volseg and a C++ compiler.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from common.record import publish, record_options
from common.results import headline, ratio, rounded, table
from monai.networks.nets import DynUNet
from predict_vs_monai import plan_of

from volseg.networks import UNet
from volseg.networks.cpu.malloc import keep_freed_memory
from volseg.precision import autocast

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed windows")
    parser.add_argument("--toy", action="store_true", help="a small network and window, for a quick check")
    record_options(parser)
    options = parser.parse_args()
    plan = plan_of(options.toy)
    network = plan.network
    shape = network.kernels, network.strides, network.strides[1:]
    plain = DynUNet(3, network.in_channels, network.classes, *shape, filters=network.features).eval()
    volseg, window, tables = UNet(network).eval(), torch.randn(1, network.in_channels, *plan.patch_size), []
    for dtype in (torch.bfloat16, torch.float32):
        torch.compiler.reset()
        compiled = torch.compile(plain)
        with torch.no_grad(), autocast(CPU, dtype):
            started = time.perf_counter()
            compiled(window)
            first = time.perf_counter() - started
            sides = {"plain": plain, "compiled": compiled, "volseg": volseg}
            seconds = {name: median_seconds(side, window, options.repeats) for name, side in sides.items()}
        precision = str(dtype).removeprefix("torch.")
        rows = [
            {"network": f"{name}, {precision}", "seconds per window": rounded(one)} for name, one in seconds.items()
        ]
        rows[1]["seconds to compile"] = rounded(first)
        tables.append(
            table(rows, [ratio("times as fast", "seconds per window", baseline=rows[0]["network"])], precision)
        )
    publish(
        options,
        "compile",
        f"torch.compile on the CPU: a window of {plan.patch_size[0]}",
        tables,
        [headline("one window, bf16", "volseg, bfloat16", "seconds per window", "compiled, bfloat16")],
        note="Plain and compiled are MONAI's DynUNet; the overview compares volseg with the compiled one.",
    )


def median_seconds(network: Callable[[torch.Tensor], object], window: torch.Tensor, repeats: int) -> float:
    """The median time of a window, after two that are not timed."""
    seconds = []
    with keep_freed_memory():
        for _ in range(repeats + 2):
            started = time.perf_counter()
            network(window)
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])


if __name__ == "__main__":
    main()
