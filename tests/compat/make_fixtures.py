"""Makes the files in fixtures/, as the version of volseg before its large renaming wrote them.

It has to run with the code of that version, commit fa819a0: README.md has the commands. Later versions are to read
these files, not to make them again.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np

import volseg
from tests.interop.folders import write_folder
from tests.interop.variants import Variant

PHANTOMS = Path("data_samples/phantoms")
MODEL = "model.safetensors"
SCAN = "imagesTs/phantom_013.nii.gz"
# Small and quick, and the same on every processor.
TINY = (
    "plan.features=[4, 8, 8]",
    "plan.patch_size=[16, 32, 32]",
    "plan.blocks_per_stage=1",
    "plan.batch_size=2",
    "training.precision=fp32",
    "training.workers=0",
    "training.validations=2",
)
# Keys that got other names, each with a value that a few steps of training depend on.
RENAMED = ("training.growth=0.6", "training.average=0.3", "training.foreground=0.75", "augmentation.passes=2.0")
SETTINGS = (*TINY, *RENAMED)
STEPS, SHORT_STEPS = 150, 12
# The steps after which a run is told to stop.
STOP_AFTER = 3
# Every key that a configuration had, each with a value that is not its default.
EVERY_KEY = """\
plan:
  spacing_mm: [2.5, 1.25, 1.5]
  patch_size: [24, 32, 40]
  batch_size: 3
  normalisation: none
  mirror_axes: [0, 2]
  block: conv2plus1d
  mid: matched
  encoder: residual
  features: [6, 12]
  blocks_per_stage: 4
  norm: batch
  activation: gelu
  deep_supervision: false
training:
  learning_rate: 0.017
  weight_decay: 0.013
  gradient_clip: 11.0
  warmup: 0.04
  average: 0.97
  foreground: 0.44
  growth: 0.61
  validations: 7
  checkpoint_seconds: 45.0
  workers: 1
  precision: fp16
augmentation:
  passes: 31.0
  rotation: 0.21
  rotation_degrees: 22.0
  scaling: 0.23
  scaling_range: [0.81, 1.31]
  mirror: 0.41
  noise: 0.11
  noise_variance: 0.02
  blur: 0.24
  blur_sigma: [0.6, 1.1]
  brightness: 0.16
  brightness_range: [0.71, 1.26]
  contrast: 0.18
  contrast_range: [0.72, 1.27]
  low_resolution: 0.26
  low_resolution_range: [0.55, 0.95]
  gamma: 0.33
  gamma_inverted: 0.12
  gamma_range: [0.73, 1.52]
"""
# As much as goes together of what only imported models have: a crop, z-scores of what is not 0, axes as stored, and
# slices so thick that they are resampled apart.
IMPORTED = Variant(
    masked=True,
    transpose=(2, 0, 1),
    spacing=(4.0, 1.5, 1.25),
    patch=(8, 16, 16),
    features=(4, 8),
    blocks=(1, 1),
    decoder_blocks=(1,),
    kernels=((1, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2)),
)


def main(made: Path) -> None:
    fixtures, models = made / "fixtures", made / "fixtures" / "models"
    models.mkdir(parents=True)
    finished = train(PHANTOMS, made / "finished_run", STEPS, SETTINGS)
    keep_run(finished, fixtures)
    keep_run(stopped(made / "stopped_run"), fixtures)

    other_fold = train(PHANTOMS, made / "other_fold", STEPS, SETTINGS, "--fold", 1)
    command("ensemble", finished, other_fold, "--output", models / "ensemble.safetensors")
    changes = ("plan.encoder=residual", "plan.block=conv2plus1d", "plan.mid=matched")
    residual = train(PHANTOMS, made / "residual", STEPS, (*SETTINGS, *changes))
    shutil.copy(residual / MODEL, models / "residual.safetensors")
    dataset = write_regions(made / "Dataset005_Regions")
    regions = train(dataset, made / "regions", STEPS, (*SETTINGS, "plan.block=conv3d"), "--folds", 2)
    shutil.copy(regions / MODEL, models / "regions.safetensors")
    command("import-nnunet", write_folder(made / "nnunet", IMPORTED), "--output", models / "imported.safetensors")

    (fixtures / "every_key.yaml").write_text(EVERY_KEY)
    command("plan", PHANTOMS.with_name("phantoms_ct"), "--output", fixtures / "plan_ct.yaml", "--device", "cpu")
    named = {path.stem: path for path in models.iterdir()}
    write_answers({"plain": fixtures / "finished_run" / MODEL, **named}, fixtures)


def words(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "volseg", *map(str, arguments)]


def command(*arguments: object) -> None:
    subprocess.run(words(*arguments), check=True, env=environment())


def environment() -> dict[str, str]:
    """One thread, so that sums are made in one order."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def training(dataset: Path, run: Path, steps: int, settings: tuple[str, ...], *more: object) -> tuple[object, ...]:
    changes = [word for setting in settings for word in ("--set", setting)]
    return ("train", dataset, "--output", run, "--steps", steps, "--device", "cpu", *changes, *more)


def train(*arguments: object) -> Path:
    command(*training(*arguments))
    return arguments[1]


def stopped(run: Path) -> Path:
    """A run that Ctrl-C stopped after a few of its steps."""
    process = subprocess.Popen(words(*training(PHANTOMS, run, SHORT_STEPS, SETTINGS)), env=environment())
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < STOP_AFTER:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert STOP_AFTER <= metrics.read_text().count("\n") < SHORT_STEPS
    assert not (run / MODEL).exists()
    return run


def keep_run(run: Path, fixtures: Path) -> None:
    """A run folder without what is large or says on which machine it was made."""
    shutil.copytree(run, fixtures / run.name, ignore=shutil.ignore_patterns("cache", "events.out.*", ".lock"))


def write_regions(folder: Path) -> Path:
    """An nnU-Net dataset of phantoms with two regions that overlap; two of three slices are to be ignored."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for path in sorted((PHANTOMS / "labelsTr").iterdir())[:6]:
        case = path.name.removesuffix(".nii.gz")
        shutil.copy(PHANTOMS / "imagesTr" / path.name, folder / "imagesTr" / f"{case}_0000.nii.gz")
        stored = nibabel.load(path)
        labels = np.asarray(stored.dataobj).copy()
        labels[..., np.arange(labels.shape[2]) % 3 > 0] = 3
        nibabel.save(nibabel.Nifti1Image(labels, stored.affine), folder / "labelsTr" / path.name)
    document = {
        "channel_names": {"0": "MRI"},
        "file_ending": ".nii.gz",
        "labels": {"background": 0, "both": [1, 2], "rod": [2], "ignore": 3},
        "regions_class_order": [1, 2],
    }
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def write_answers(models: dict[str, Path], fixtures: Path) -> None:
    """What each model says about one scan, in float32."""
    scan = nibabel.load(PHANTOMS / SCAN)
    handed_over = np.asarray(scan.dataobj), scan.affine
    labels, answers = {}, {}
    for name, path in sorted(models.items()):
        result = volseg.Segmenter.load(path, device="cpu", precision="fp32")(handed_over)
        labels[name] = result.labels
        answers[name] = {"volumes_ml": result.volumes_ml, "flags": list(result.flags)}
    np.savez_compressed(fixtures / "labels.npz", **labels)
    (fixtures / "answers.json").write_text(json.dumps(answers, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
