"""The demo as a new user runs it, on the phantoms in the repository."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.pipeline import TINY, volseg
from volseg.api import demo
from volseg.api.demo import run_demo
from volseg.api.predict import predict
from volseg.api.train import train
from volseg.data.cases.phantom import threshold_baseline, write_phantoms
from volseg.errors import InputError, UsageError

SAMPLES = Path(__file__).parents[2] / "data_samples" / "phantoms"


@pytest.mark.slow
def test_the_demo_beats_the_best_threshold(tmp_path):
    done = volseg("demo", "--samples", SAMPLES, "--output", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    dice, threshold = (float(line.rpartition(" ")[2]) for line in (lines[-1], lines[-2]))
    assert lines[-1].startswith("mean foreground Dice: ")
    assert lines[-2].startswith("best threshold baseline Dice: ")
    assert dice >= 0.90
    assert threshold < 0.6
    report = json.loads((tmp_path / "demo" / "report.json").read_text(encoding="utf-8"))
    assert report["mean"]["foreground_dice"] == pytest.approx(dice, abs=0.005)
    trained_on = {path.name for path in (SAMPLES / "imagesTr").iterdir()}
    assert not trained_on & {f"{case['name']}.nii.gz" for case in report["cases"]}
    assert list((tmp_path / "demo" / "predictions").glob("*.png"))


@pytest.fixture
def quick(monkeypatch):
    """The demo with a run of one step on phantoms that are few; what `train` and `predict` are called with."""
    seen = {}

    def training(samples, output, **options):
        seen["train"] = (samples, output, options)
        return train(samples, output, **{**options, "steps": 1, "overrides": TINY})

    def predicting(scans, model, output, **options):
        seen["predict"] = (scans, model, output, options)
        return predict(scans, model, output, **options)

    monkeypatch.setattr(demo, "TRAINING_CASES", 2)
    monkeypatch.setattr(demo, "TEST_CASES", 2)
    monkeypatch.setattr(demo, "train", training)
    monkeypatch.setattr(demo, "predict", predicting)
    return seen


def test_without_samples_the_demo_writes_phantoms_and_scores_the_held_out_ones(quick, tmp_path):
    told = []
    out = tmp_path / "demo"
    outcome = run_demo(out, overwrite=True, progress=lambda *said: told.append(said[0]))
    samples, run, options = quick["train"]
    assert (samples, run) == (out / "phantoms", out / "run")
    assert options.pop("progress")
    assert options == {"fold": "all", "steps": demo.STEPS, "overrides": demo.OVERRIDES, "overwrite": True}
    scans, model, results, options = quick["predict"]
    assert (scans, model, results) == (samples / "imagesTs", run / "model.safetensors", out / "predictions")
    assert options.pop("progress")
    assert options == {"preview": True, "overwrite": True}
    assert {"prepare", "train", "segment"} <= set(told)
    held_out = sorted(path.name.removesuffix(".nii.gz") for path in (samples / "labelsTs").iterdir())
    assert len(held_out) == 2
    document = json.loads((out / "report.json").read_text())
    assert outcome.dice == document["mean"]["foreground_dice"]
    assert outcome.rows == [
        (case["name"], label, row["prediction_ml"], row["reference_ml"], row["dice"])
        for case in document["cases"]
        for label, row in case["labels"].items()
    ]
    assert [row[:2] for row in outcome.rows] == [(name, label) for name in held_out for label in ("ball", "rod")]
    assert outcome.preview == out / "predictions" / f"{held_out[0]}.png"
    assert outcome.preview.exists()
    arrays = [
        [np.asarray(nibabel.load(path).dataobj) for path in sorted((samples / part).iterdir())]
        for part in ("imagesTs", "labelsTs")
    ]
    assert outcome.threshold_dice == pytest.approx(threshold_baseline(*arrays))
    with pytest.raises(UsageError, match="--overwrite"):
        run_demo(out)


def test_a_scan_that_cannot_be_segmented_ends_the_demo(quick, tmp_path):
    samples = tmp_path / "samples"
    write_phantoms(samples, 2, 5, "mr", tests=2)
    max((samples / "imagesTs").iterdir()).write_bytes(b"no image")
    with pytest.raises(InputError, match="phantom_00"):
        run_demo(tmp_path / "demo", samples)
    assert quick["train"][0] == samples
    assert not (tmp_path / "demo" / "phantoms").exists()
