"""One window through plain modules, through the same after torch.compile, and through volseg's network, on the CPU.

    python benchmarks/compiled.py [--repeats 5] [--toy] [--append]

The U-Net and window of `predict_vs_monai.py` (32 to 320 features, 15 classes, 96 voxels an edge), as MONAI's DynUNet
and as volseg's, without gradients. Medians after two warm runs; the first compiled run, which compiles, is timed on its
own. Needs volseg and a C++ compiler.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from monai.networks.nets import DynUNet
from predict_vs_monai import plan_of
from sides import as_table, publish

from volseg.networks import UNet
from volseg.networks.cpu.malloc import keep_freed_memory
from volseg.precision import autocast

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="windows that count")
    parser.add_argument("--toy", action="store_true", help="a small network and window, to see that everything works")
    parser.add_argument("--append", action="store_true", help="add the table to RESULTS.md")
    options = parser.parse_args()
    plan = plan_of(options.toy)
    network = plan.network
    shape = network.kernels, network.strides, network.strides[1:]
    plain = DynUNet(3, network.in_channels, network.classes, *shape, filters=network.features).eval()
    volseg, window, rows = UNet(network).eval(), torch.randn(1, network.in_channels, *plan.patch_size), []
    for dtype in (torch.bfloat16, torch.float32):
        torch.compiler.reset()
        compiled = torch.compile(plain)
        with torch.no_grad(), autocast(CPU, dtype):
            started = time.perf_counter()
            compiled(window)
            first = time.perf_counter() - started
            sides = {"plain": plain, "compiled": compiled, "volseg": volseg}
            seconds = {name: median_seconds(side, window, options.repeats) for name, side in sides.items()}
        rows += [
            {
                "precision": str(dtype).removeprefix("torch."),
                "network": name,
                "seconds per window": f"{one:.3f}",
                "times as fast as plain": f"{seconds['plain'] / one:.2f}",
                "seconds to compile": f"{first:.1f}" if name == "compiled" else "",
            }
            for name, one in seconds.items()
        ]
    publish(
        f"torch.compile: a window of {plan.patch_size[0]}",
        "python benchmarks/compiled.py",
        as_table(rows),
        options.append,
    )


def median_seconds(network: Callable[[torch.Tensor], object], window: torch.Tensor, repeats: int) -> float:
    """The median time of a window, after two that do not count."""
    seconds = []
    with keep_freed_memory():
        for _ in range(repeats + 2):
            started = time.perf_counter()
            network(window)
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])


if __name__ == "__main__":
    main()
