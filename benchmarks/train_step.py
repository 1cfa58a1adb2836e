"""One training step of volseg against nnU-Net v2's, on the same network, patch and batch, on the CPU.

    python benchmarks/train_step.py [--nnunet-python PYTHON] [--precision auto] [--repeats 5] [--toy] [--record]

nnU-Net's network for the hippocampus: a PlainConvUNet of 32, 64, 128 and 256 features with deep supervision, 3 classes,
7 patches of 40 x 56 x 40 voxels. nnU-Net trains in float32, its default on a CPU (`nnunet/step.py`); volseg runs its
whole loop, including the EMA of the weights. Both repeat one random batch, so reading data is not measured. Each side
runs in its own process, one after the other; the figure is the median of the steps after the first. Needs volseg and a
Python that has nnunetv2.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from itertools import pairwise, repeat
from pathlib import Path

import torch
from common.record import publish, record_options
from common.results import Row, headline, ratio, rounded, table
from common.sides import Side, run_side
from machine_peak import peak
from torch.utils.flop_counter import FlopCounterMode

from volseg.config import NetworkConfig, TrainingConfig
from volseg.networks import UNet
from volseg.networks.cpu.malloc import keep_freed_memory
from volseg.precision import DTYPES, choose_precision
from volseg.training import Budget, TrainingState, fit


@dataclass(frozen=True)
class Step:
    """What both sides run: a U-Net with two convolutions per stage and one channel; a patch is (D, H, W)."""

    features: tuple[int, ...]
    classes: int
    patch: tuple[int, int, int]
    batch: int
    repeats: int

    @property
    def network(self) -> NetworkConfig:
        """The network as volseg builds it."""
        stages = len(self.features)
        return NetworkConfig(
            classes=self.classes,
            features=self.features,
            encoder_blocks=(2,) * stages,
            decoder_blocks=(2,) * (stages - 1),
            kernels=((3, 3, 3),) * stages,
            strides=((1, 1, 1), *((2, 2, 2),) * (stages - 1)),
        )


HIPPOCAMPUS = Step(features=(32, 64, 128, 256), classes=3, patch=(40, 56, 40), batch=7, repeats=5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nnunet-python", type=Path, default=Path(sys.executable), help="a Python that has nnunetv2")
    parser.add_argument("--precision", choices=["auto", *DTYPES], default="auto", help="of volseg")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps")
    parser.add_argument("--toy", action="store_true", help="a small network and batch, for a quick check")
    record_options(parser)
    parser.add_argument("--side", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    step = replace(HIPPOCAMPUS, repeats=options.repeats)
    if options.toy:
        step = replace(step, features=(4, 8, 16, 32), patch=(16, 24, 16), batch=2)
    if options.side:
        print(json.dumps({"seconds": volseg_seconds(step, options.precision)}))
        return
    if not options.nnunet_python.exists():
        parser.error(f"no such file: {options.nnunet_python}; --nnunet-python takes a Python that has nnunetv2")
    theirs = run_side([Path(__file__).parent / "nnunet" / "step.py", json.dumps(asdict(step))], options.nnunet_python)
    same = [f"--precision={options.precision}", f"--repeats={options.repeats}", *["--toy"] * options.toy]
    ours = run_side([__file__, "--side", *same])
    dtype = choose_precision(options.precision, torch.device("cpu"))
    gflop = step_gflop(step)
    rows = [row("nnU-Net", theirs, gflop, torch.float32), row("volseg", ours, gflop, dtype)]
    reference, own = (one["side"] for one in rows)
    patch = " x ".join(map(str, step.patch))
    what = "training step of nnU-Net's hippocampus network"
    publish(
        options,
        "train-step",
        f"Training step against nnU-Net: {gflop:,.0f} GFLOP, batch {step.batch} of {patch}{', toy' * options.toy}",
        [table(rows, [
            ratio("times as fast", "seconds per step", baseline=reference),
            ratio("times the memory", "peak GiB", baseline=reference),
            ratio("fraction of peak", "GFLOP/s", over="peak GFLOP/s"),
        ])],
        [headline(what, own, column) for column in ("seconds per step", "peak GiB")],
    )  # fmt: skip


def volseg_seconds(step: Step, precision: str) -> list[float]:
    """Seconds of each step of volseg's loop after the first, from the end of one step to the end of the next."""
    torch.manual_seed(0)
    image = torch.randn(step.batch, 1, *step.patch)
    batch = {"image": image, "label": torch.randint(step.classes, (step.batch, *step.patch), dtype=torch.uint8)}
    config = TrainingConfig(precision=precision)
    ends: list[float] = []
    state = TrainingState(UNet(step.network), config)
    budget = Budget(steps=step.repeats + 1)
    with keep_freed_memory(large=True):
        fit(state, repeat(batch), budget, config, report=lambda _: ends.append(time.perf_counter()))
    return [later - sooner for sooner, later in pairwise(ends)]


def step_gflop(step: Step) -> float:
    """GFLOP of one forward and backward pass, as `FlopCounterMode` counts them; the coarsest output has no loss."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        outputs = UNet(step.network)(torch.empty(step.batch, 1, *step.patch))
        sum(output.sum() for output in outputs[:-1]).backward()
    return counter.get_total_flops() / 1e9


def row(name: str, side: Side, gflop: float, dtype: torch.dtype) -> Row:
    """The row of one side; the peak of the machine is measured now."""
    return {
        "side": f"{name}, {str(dtype).removeprefix('torch.')}",
        "seconds per step": rounded(side.seconds),
        "steps per second": rounded(1 / side.seconds),
        "GFLOP/s": rounded(gflop / side.seconds),
        "peak GFLOP/s": rounded(peak(dtype)),
        "peak GiB": rounded(side.peak_gib),
    }


if __name__ == "__main__":
    main()
