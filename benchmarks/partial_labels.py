"""Partial labels: is a model of two half-annotated datasets as good as one that has all labels, at equal steps?

    python benchmarks/partial_labels.py $VOLSEG_DATA/Task04_Hippocampus --steps 3000 --output runs/partial [--record]

Makes, from fold 0's training cases of a Decathlon folder, two datasets in a temporary folder: one half of the cases
with only the first label annotated, the other half with only the second; the other label is erased to 0. Trains on the
same images and for the same steps (a) with all labels, (b) with the two datasets joined, (c) with the same erased label
images, as if what nobody looked for were background. All segment fold 0's validation cases, without postprocessing, and
are compared with the whole references. The flips of (a) are set for the others, too: without a case that has both
labels, a plan would have none. Each training is `volseg train` in its own process; a finished run is not trained again.
Needs volseg and the dataset.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from common.record import publish, record_options, slug
from common.results import Row, headline, ratio, table
from common.runs import dice_columns, foreground_columns
from common.sides import run_command

import volseg
from volseg.config import read_yaml
from volseg.data.cases.dataset import TrainingCase, open_dataset, split_folds

FULL, JOINED, BACKGROUND = "all labels annotated", "partial labels, joined", "missing taken as background"
VOLSEG = [sys.executable, "-m", "volseg"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every training")
    record_options(parser)
    options = parser.parse_args()
    dataset = open_dataset(options.dataset)
    first, second, *others = dataset.labels.values
    if others:
        parser.error(f"{options.dataset} has more than two labels; give a dataset with two")
    split = split_folds(dataset).splits[0]
    cases = {case.name: case for case in dataset.cases}
    training, validation = ([cases[name] for name in split[half]] for half in ("train", "val"))
    with tempfile.TemporaryDirectory() as temporary:
        made = make_datasets(Path(temporary), training, dict(dataset.labels.values))
        scores: dict[str, list[dict[str, Any]]] = {name: [] for name in made}
        for seed in options.seeds:
            flips: list[str] = []
            for name, folders in made.items():
                run = options.output / f"{slug(name)}-seed{seed}"
                if not (run / "model.safetensors").exists():
                    train(options, name, folders, run, seed, flips)
                flips = flips or ["--set", f"plan.mirror_axes={read_yaml(run / 'plan.yaml')['mirror_axes']}"]
                scores[name].append(score(run, validation, dict(dataset.labels.values), options.device))
    rows = [row(name, found) for name, found in scores.items()]
    what = f"{options.dataset.name}, fold 0, {options.steps} steps, {first} or {second} in half of the cases each"
    publish(
        options,
        f"partial-labels-{slug(options.dataset.name)}",
        f"Partial labels: {what}",
        [table(rows, [ratio("difference", "mean foreground Dice", baseline=FULL)])],
        [headline(f"partial labels, {what}", JOINED, "mean foreground Dice", FULL)],
        note=f"Means over {len(options.seeds)} seeds; {len(training)} training and {len(validation)} validation cases.",
    )


def make_datasets(folder: Path, cases: Sequence[TrainingCase], values: dict[str, int]) -> dict[str, list[Path]]:
    """The datasets of each way to train, by its name; images are links."""
    first, second = values
    halves = {first: cases[::2], second: cases[1::2]}
    full, background = folder / "full", folder / "background"
    for case in cases:
        add_case(full, case, set(values.values()))
    write_index(full, cases, values)
    for name, half in halves.items():
        for case in half:
            add_case(background, case, {values[name]})
            add_case(folder / name, case, {values[name]})
        write_index(folder / name, half, {name: values[name]})
    write_index(background, cases, values)
    return {FULL: [full], JOINED: [folder / name for name in halves], BACKGROUND: [background]}


def add_case(folder: Path, case: TrainingCase, kept: set[int]) -> None:
    """Put a case into a dataset, with only some of the values in its label image."""
    for place in ("images", "labels"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / "images" / case.images[0].name).symlink_to(case.images[0].resolve())
    stored = nibabel.load(case.label)
    values = np.asarray(stored.dataobj)
    erased = np.where(np.isin(values, list(kept)), values, 0).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(erased, stored.affine), folder / "labels" / case.label.name)


def write_index(folder: Path, cases: Sequence[TrainingCase], values: dict[str, int]) -> None:
    """dataset.json of the Decathlon."""
    entries = [{"image": f"images/{case.images[0].name}", "label": f"labels/{case.label.name}"} for case in cases]
    document = {"name": folder.name, "labels": values, "modality": {"0": "image"}, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(document), encoding="utf-8")


def train(
    options: argparse.Namespace, name: str, folders: Sequence[Path], run: Path, seed: int, flips: Sequence[str]
) -> None:
    """One run on all cases of one or more datasets."""
    print(f"{name}, seed {seed}", file=sys.stderr)
    choices = [word for one in options.set for word in ("--set", one)]
    budget = ["--steps", str(options.steps), "--fold", "all", "--seed", str(seed), "--device", options.device]
    run_command([*VOLSEG, "train", *folders, "--output", run, *budget, *flips, *choices, "--overwrite"])
    shutil.rmtree(run / "cache", ignore_errors=True)


def score(run: Path, cases: Sequence[TrainingCase], values: dict[str, int], device: str) -> dict[str, Any]:
    """The mean scores of a run's model on cases with all labels."""
    model, results, references = run / "model.safetensors", run / "segmented", run / "references"
    references.mkdir(exist_ok=True)
    for case in cases:
        link = references / case.label.name
        link.unlink(missing_ok=True)
        link.symlink_to(case.label.resolve())
    scans = [case.images[0] for case in cases]
    for outcome in volseg.predict(scans, model, results, device=device, overwrite=True):
        if outcome.error:
            raise outcome.error
    return volseg.evaluate(results, references, labels=values)["mean"]


def row(name: str, scores: Sequence[dict[str, Any]]) -> Row:
    """The mean Dice of one way to train over its seeds."""
    return {
        "labels": name,
        "runs": len(scores),
        **dice_columns(scores),
        **foreground_columns(one["foreground_dice"] for one in scores),
    }


if __name__ == "__main__":
    main()
