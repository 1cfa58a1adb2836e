"""What this machine can compute: matrix products and 3-D convolutions, in float32 and bfloat16.

    python benchmarks/machine_peak.py [--append]

Needs torch only. bfloat16 convolutions are tried on a small volume first, because a processor that emulates them
needs minutes for a large one.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from sides import as_table, publish


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--append", action="store_true", help="add the table to RESULTS.md")
    options = parser.parse_args()
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        one, other = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
        rows.append(row("2048 x 2048 matrix product", dtype, 2 * 2048**3, lambda a=one, b=other: a @ b))
        for edge in (16, 64):
            convolution = torch.nn.Conv3d(32, 32, 3, padding=1, bias=False).to(dtype)
            convolution = convolution.to(memory_format=torch.channels_last_3d)
            volume = torch.randn(1, 32, edge, edge, edge).to(dtype).to(memory_format=torch.channels_last_3d)
            flops = 2 * 27 * 32 * 32 * edge**3
            rows.append(row(f"3 x 3 x 3, 32 to 32, {edge}^3", dtype, flops, lambda c=convolution, v=volume: c(v)))
            if float(rows[-1]["GFLOP/s"]) < 5:
                break
    publish("The machine's peak", "python benchmarks/machine_peak.py", as_table(rows), options.append)


@torch.inference_mode()
def row(name: str, dtype: torch.dtype, flops: int, work: Callable[[], object]) -> dict[str, object]:
    """Median speed of seven runs."""
    seconds = []
    for _ in range(8):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return {
        "work": name,
        "dtype": str(dtype).split(".")[1],
        "GFLOP/s": f"{flops / statistics.median(seconds[1:]) / 1e9:.1f}",
    }


if __name__ == "__main__":
    main()
