"""The first minute: train on phantoms, segment scans the network has not seen, and score them."""

from dataclasses import dataclass
from pathlib import Path

from volseg.api.evaluation import evaluate
from volseg.api.predict import predict
from volseg.api.train import train
from volseg.data.cases.phantom import threshold_baseline, write_phantoms
from volseg.data.io.formats import sibling
from volseg.data.io.reading import read_label, read_scan
from volseg.progress import Progress, silent

# About a minute on two slow cores. Steps rather than minutes, so that a busy machine takes longer but scores the same.
STEPS = 250
OVERRIDES = (
    "plan.block=conv3d", "plan.features=[8, 16, 32]", "plan.batch_size=2", "training.validations=0",
)  # fmt: skip
TRAINING_CASES, TEST_CASES, SEED = 12, 3, 20


@dataclass(frozen=True)
class DemoOutcome:
    """What the demo found.

    Attributes:
        rows: (case, label, volume in ml, reference in ml, Dice) of each label of each test scan.
        dice: mean foreground Dice over the test scans.
        threshold_dice: the same for the best intensity windows there are.
        preview: a picture of one of the results.
    """

    rows: list[tuple[str, str, float | None, float | None, float | None]]
    dice: float
    threshold_dice: float
    preview: Path


def run_demo(
    output: Path, samples: Path | None = None, overwrite: bool = False, progress: Progress = silent
) -> DemoOutcome:
    """Train on phantoms for about a minute and segment those that were held out.

    Args:
        output: gets phantoms (if made), run and predictions.
        samples: a folder as `write_phantoms` makes it; None: make one.
        overwrite: replace an earlier demo there.
        progress: told how far the demo is.
    """
    if samples is None:
        samples = output / "phantoms"
        write_phantoms(samples, TRAINING_CASES, SEED, "mr", tests=TEST_CASES)
    train(
        samples,
        output / "run",
        fold="all",
        steps=STEPS,
        overrides=OVERRIDES,
        overwrite=overwrite,
        progress=progress,
    )
    model, scans = output / "run" / "model.safetensors", samples / "imagesTs"
    predictions = predict(scans, model, output / "predictions", preview=True, overwrite=overwrite, progress=progress)
    for prediction in predictions:
        if prediction.error:
            raise prediction.error
    document = evaluate(output / "predictions", samples / "labelsTs", samples / "dataset.json", output / "report.json")
    rows = [
        (case["name"], label, found["prediction_ml"], found["reference_ml"], found["dice"])
        for case in document["cases"]
        for label, found in case["labels"].items()
    ]
    return DemoOutcome(
        rows=rows,
        dice=document["mean"]["foreground_dice"],
        threshold_dice=threshold_baseline(
            [read_scan(path).channels[0] for path in sorted(scans.iterdir())],
            [read_label(path).channels[0] for path in sorted((samples / "labelsTs").iterdir())],
        ),
        preview=sibling(predictions.jobs[0][1], ".png"),
    )
