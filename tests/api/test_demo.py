"""The demo as a new user runs it, on the phantoms in the repository."""

import json
from pathlib import Path

import pytest

from tests.pipeline import volseg

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
