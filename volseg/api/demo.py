"""The demo: train on phantoms for about a minute, segment unseen phantoms and score the result."""

from dataclasses import dataclass
from pathlib import Path

from volseg.api.evaluation import evaluate
from volseg.api.predict import predict
from volseg.api.train import train
from volseg.data.cases.phantom import threshold_baseline, write_phantoms
from volseg.data.io.formats import sibling
from volseg.data.io.reading import read_label, read_scan
from volseg.progress import Progress, silent

# About a minute on two slow cores. Steps rather than minutes, so that a busy machine reaches the same score, later.
STEPS = 250
OVERRIDES = (
    "plan.block=conv3d", "plan.features=[8, 16, 32]", "plan.batch_size=2", "training.validations=0",
)  # fmt: skip
TRAINING_CASES, TEST_CASES, SEED = 12, 3, 20


@dataclass(frozen=True)
class DemoOutcome:
    """The result of the demo.

    Attributes:
        rows: (case, label, volume in mL, reference volume in mL, Dice), one row per test scan and label.
        dice: mean foreground Dice over the test scans.
        threshold_dice: the mean foreground Dice of the best intensity thresholds.
        preview: the picture of one result.
    """

    rows: list[tuple[str, str, float | None, float | None, float | None]]
    dice: float
    threshold_dice: float
    preview: Path


def run_demo(
    output: Path, samples: Path | None = None, overwrite: bool = False, progress: Progress = silent
) -> DemoOutcome:
    """Train on phantoms for about a minute, segment the held-out phantoms and score the result.

    Args:
        output: folder for the phantoms (if generated), the run and the predictions.
        samples: a folder with the layout of `write_phantoms`; None: generate one.
        overwrite: replace an earlier demo in `output`.
        progress: called with the fraction of the current stage that is done.
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
    # All of them, because only the end of the iteration releases the folder.
    for prediction in list(predictions):
        if prediction.error:
            raise prediction.error
    document = evaluate(output / "predictions", samples / "labelsTs", samples / "dataset.json", output / "report.json")
    rows = [
        (case["name"], label, measures["prediction_ml"], measures["reference_ml"], measures["dice"])
        for case in document["cases"]
        for label, measures in case["labels"].items()
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
