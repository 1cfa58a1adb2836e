"""What this machine can compute: matrix products and 3-D convolutions, in float32 and bfloat16.

    python benchmarks/machine_peak.py [--device cuda] [--record]

Needs torch only. Small sizes run before large ones, which are skipped where small ones are slow, because a processor
that emulates bfloat16 takes minutes for them.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from common.record import publish, record_options
from common.results import headline, rounded, table

REPEATS = 7
SLOW_GFLOPS = 5
PRODUCTS = {"cpu": (512, 2048, 4096), "cuda": (4096, 8192)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=PRODUCTS, default="cpu")
    record_options(parser)
    options = parser.parse_args()
    rows = [
        {"operation": f"{work}, {str(dtype).removeprefix('torch.')}", "GFLOP/s": rounded(speed)}
        for dtype in (torch.float32, torch.bfloat16)
        for speeds in (products(dtype, options.device), convolutions(dtype, options.device))
        for work, speed in speeds.items()
    ]
    fastest = max(rows, key=lambda row: row["GFLOP/s"])
    heads = [headline("fastest operation", fastest["operation"], "GFLOP/s")]
    publish(options, "machine-peak", "Peak of the machine: matrix products and convolutions", [table(rows)], heads)


def peak(dtype: torch.dtype, device: str = "cpu") -> float:
    """The fastest matrix product in `dtype`, in GFLOP/s."""
    return max(products(dtype, device).values())


def products(dtype: torch.dtype, device: str) -> dict[str, float]:
    """GFLOP/s of square matrix products, small to large."""
    found: dict[str, float] = {}
    for edge in PRODUCTS[device]:
        one, other = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
        name = f"{edge} x {edge} matrix product"
        found[name] = gflops_per_second(lambda a=one, b=other: a @ b, 2 * edge**3, device)
        if found[name] < SLOW_GFLOPS:
            break
    return found


def convolutions(dtype: torch.dtype, device: str) -> dict[str, float]:
    """GFLOP/s of a typical convolution of a U-Net, on a small and a large volume."""
    found: dict[str, float] = {}
    for edge in (16, 96):
        layer = torch.nn.Conv3d(32, 32, 3, padding=1, bias=False, device=device, dtype=dtype)
        layer = layer.to(memory_format=torch.channels_last_3d)
        volume = torch.randn(1, 32, edge, edge, edge, device=device).to(dtype)
        volume = volume.to(memory_format=torch.channels_last_3d)
        name = f"3 x 3 x 3 convolution, 32 to 32, {edge}^3"
        found[name] = gflops_per_second(lambda a=layer, b=volume: a(b), 2 * 27 * 32 * 32 * edge**3, device)
        if found[name] < SLOW_GFLOPS:
            break
    return found


@torch.inference_mode()
def gflops_per_second(work: Callable[[], object], flops: int, device: str) -> float:
    """Median speed of several runs after one warm-up run."""
    seconds = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return flops / statistics.median(seconds[1:]) / 1e9


if __name__ == "__main__":
    main()
