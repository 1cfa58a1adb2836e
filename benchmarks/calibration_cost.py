"""What expected Dice and volume intervals cost: seconds of CPU of a `Segmenter` with and without a calibration.

    python benchmarks/calibration_cost.py [--size 300] [--repeats 5] [--background 0.9] [--record]

The two models have the same random weights, few features and 14 classes, and differ in their calibration alone. They
segment the same phantom in turn, on one thread; the figures are medians. A part of the voxels is certain background, as
in real scans; `--background 0` is the worst case. The labels of both must be equal.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common.record import publish, record_options
from common.results import headline, ratio, table

from volseg import Segmenter
from volseg.confidence.sums import FAINT
from volseg.config import Channel, Label, NetworkConfig, Plan
from volseg.modelfile import ModelCard, save_model
from volseg.modelfile.calibration import BINS, Calibration, LabelCalibration, Reliability
from volseg.networks import UNet

CLASSES = 14
FEATURES = (8, 16, 32)
PATCH = 64
TEMPERATURE = 1.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=300, help="voxels along each edge of the phantom")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--background", type=float, default=0.9, help="fraction of voxels that are certain background")
    record_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    scan = phantom(options.size), np.eye(4)
    with tempfile.TemporaryDirectory() as folder:
        models = {
            name: Segmenter.load(write(Path(folder) / f"{name}.safetensors", known, options.background), device="cpu")
            for name, known in (("without", None), ("with", calibration()))
        }
    seconds: dict[str, list[float]] = {name: [] for name in models}
    labels = {}
    for number in range(options.repeats + 1):
        for name, segmenter in models.items():
            started = time.process_time()
            labels[name] = segmenter(scan).labels
            # The first round loads what later ones have.
            if number:
                seconds[name].append(time.process_time() - started)
                print(f"{name} {seconds[name][-1]:.2f}", flush=True)
    assert np.array_equal(*labels.values())
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    rows = [{"calibration": name, "CPU seconds, median": round(medians[name], 3)} for name in models]
    publish(
        options,
        "calibration-cost",
        f"Cost of expected Dice and intervals: {options.size}^3 voxels, {CLASSES} classes, {FEATURES} features",
        [table(rows, [ratio("difference", "CPU seconds, median", baseline="without")])],
        [headline("CPU time of a scan with expected Dice", "with", "CPU seconds, median", "without")],
        note=f"Medians of {options.repeats}, in turn; {options.background:.0%} of the voxels are certain background.",
    )
    print(f"{medians['with'] / medians['without'] - 1:+.1%}; single runs: {seconds}")


def phantom(size: int) -> np.ndarray:
    """A smooth random scan, int16."""
    coarse = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, 12, 12, 12)))
    smooth = torch.nn.functional.interpolate(coarse, size=(size,) * 3, mode="trilinear", align_corners=True)
    return (300 * smooth[0, 0].numpy() + 500).astype(np.int16)


def write(path: Path, known: Calibration | None, background: float) -> Path:
    """A model with random weights to which a fraction of the voxels is certain background at `TEMPERATURE`."""
    steps = len(FEATURES)
    network = NetworkConfig(
        classes=CLASSES,
        features=FEATURES,
        encoder_blocks=(1,) * steps,
        decoder_blocks=(1,) * (steps - 1),
        kernels=((3, 3, 3),) * steps,
        strides=((1, 1, 1), *((2, 2, 2),) * (steps - 1)),
        deep_supervision=False,
    )
    plan = Plan(
        dataset="phantom",
        channels=(Channel(name="MRI"),),
        labels=tuple(Label(name=f"label_{value}", value=value) for value in range(1, CLASSES)),
        spacing_mm=(1.0, 1.0, 1.0),
        patch_size=(PATCH,) * 3,
        network=network,
    )
    torch.manual_seed(0)
    unet = UNet(network).eval()
    scan = torch.from_numpy(phantom(PATCH).astype(np.float32))[None, None]
    with torch.inference_mode():
        logits = unet((scan - scan.mean()) / scan.std())[0]
        margin = (logits[1:].amax(0) - logits[0]).flatten().to(torch.float64)
        shift = float(torch.quantile(margin, background)) + FAINT * TEMPERATURE
    weights = unet.state_dict()
    (bias,) = (name for name, tensor in weights.items() if tensor.shape == (CLASSES,) and name.endswith("bias"))
    if background:
        weights[bias] = weights[bias] + torch.tensor([shift, *(0.0,) * (CLASSES - 1)])
    save_model(path, ModelCard(name="phantom", plan=plan, calibration=known), weights)
    return path


def calibration() -> Calibration:
    """One for all labels, whose threshold flags nothing, so that no orientation is searched for."""
    nothing = Reliability(voxels=(0,) * BINS, probability=(0.0,) * BINS, frequency=(0.0,) * BINS, error=0.0)
    label = LabelCalibration(typical_ml=10.0, low_confidence=0.0, volume_low=-1.0, volume_high=1.0, cases=20)
    labels = {f"label_{value}": label for value in range(1, CLASSES)}
    return Calibration(temperature=TEMPERATURE, labels=labels, before=nothing, after=nothing, cases=20)


if __name__ == "__main__":
    main()
