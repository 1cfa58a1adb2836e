"""Fine-tuning against training from scratch, with the same few cases and the same time.

    python benchmarks/fine_tuning.py Task04_Hippocampus --source MODEL [--minutes 3] [--seeds 3] [--record]
    python benchmarks/fine_tuning.py Task04_Hippocampus --source-minutes 8 --workdir DIR
    python benchmarks/fine_tuning.py Task04_Hippocampus --source MODEL --keep

The source is a model of the training cases of fold 0; without --source it is trained first. The target has the scans of
fold 0's validation half with labels that this script makes of all labels together, none of which the source knows by
name: a new one, "Tail", the posterior third of their extent, and a merged one, "Rest". The first ten cases by name are
trained on, the others scored. Each seed is trained twice: --from the source, and from scratch.

With --keep the target has one label only, "Surroundings", the voxels within two of the source's labels, which it does
not have; --keep-labels keeps those. Their Dice on fold 0's validation cases that were not trained on is measured before
and after. Needs volseg and a dataset with at least 12 cases in the validation half of fold 0.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
from common.record import publish, record_options, slug
from common.results import Row, headline, table
from common.runs import dice_columns, foreground_columns, scores_of
from precision import held_out, mean_dice
from scipy.ndimage import binary_dilation

from volseg import Segmenter, train
from volseg.data.cases.dataset import TrainingCase, open_dataset
from volseg.modelfile import read_card

TRAINED = 10
SHELL = 2


def main() -> None:
    options = parsed()
    with tempfile.TemporaryDirectory() as temporary:
        workdir = options.workdir or Path(temporary)
        source = options.source or str(
            train(options.dataset, workdir / "source", fold=0, minutes=options.source_minutes, device=options.device)
            / "model.safetensors"
        )
        cases = held_out(options.dataset, 0)
        if len(cases) < TRAINED + 2:
            sys.exit(f"Fold 0 validates on {len(cases)} cases, expected at least {TRAINED + 2}. Give a larger dataset.")
        target = workdir / ("target-keep" if options.keep else "target")
        splits = write_target(options.dataset, cases, target, options.keep)
        measure = kept if options.keep else against_scratch
        measure(options, source, target, splits, workdir, cases)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--source", help="a model that was not trained on fold 0's validation cases")
    parser.add_argument("--source-minutes", type=float, default=8.0, help="without --source: the time of its training")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--steps", type=int, help="instead of --minutes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--freeze", choices=["encoder"])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for both sides")
    parser.add_argument("--set-from", action="append", default=[], metavar="KEY=VALUE", help="for --from alone")
    parser.add_argument("--keep", action="store_true", help="measure --keep-labels instead")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workdir", type=Path, help="keeps the runs here; finished ones are used again")
    record_options(parser)
    return parser.parse_args()


def write_target(dataset: Path, cases: Sequence[TrainingCase], folder: Path, keep: bool) -> Path:
    """Write the target as a Decathlon with links to the scans, and its only fold; returns the file of the fold."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    entries = []
    for case in cases:
        scan = folder / "imagesTr" / case.images[0].name
        if not scan.exists():
            scan.symlink_to(case.images[0].absolute())
        reference = nibabel.load(case.label)
        label = surroundings(reference) if keep else thirds(reference)
        image = nibabel.Nifti1Image(label, reference.affine)
        image.header.set_xyzt_units("mm")
        nibabel.save(image, folder / "labelsTr" / f"{case.name}.nii.gz")
        entries.append({"image": f"imagesTr/{scan.name}", "label": f"labelsTr/{case.name}.nii.gz"})
    channels = {str(number): name for number, name in enumerate(open_dataset(dataset).channels)}
    # 3, so that the source's own labels keep their values.
    labels = {"0": "background", "3": "Surroundings"} if keep else {"0": "background", "1": "Rest", "2": "Tail"}
    document = {"name": folder.name, "modality": channels, "labels": labels, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(document), encoding="utf-8")
    names = sorted(case.name for case in cases)
    splits = folder.with_name(f"{folder.name}-splits.json")
    splits.write_text(json.dumps([{"train": names[:TRAINED], "val": names[TRAINED:]}]), encoding="utf-8")
    return splits


def thirds(reference: nibabel.Nifti1Image) -> np.ndarray:
    """All labels together as 1, and 2 in the posterior third of their extent."""
    inside = np.asarray(reference.dataobj) > 0
    axis, direction = next(
        (axis, direction)
        for axis, (world, direction) in enumerate(nibabel.io_orientation(reference.affine))
        if world == 1
    )
    planes = np.flatnonzero(inside.any(tuple(other for other in range(3) if other != axis)))
    third = len(planes) // 3
    posterior = np.zeros(inside.shape[axis], bool)
    posterior[planes[:third] if direction > 0 else planes[len(planes) - third :]] = True
    shape = [-1 if one == axis else 1 for one in range(3)]
    return np.where(inside, 1 + posterior.reshape(shape), 0).astype(np.uint8)


def surroundings(reference: nibabel.Nifti1Image) -> np.ndarray:
    """3 within two voxels of any label, outside all of them."""
    inside = np.asarray(reference.dataobj) > 0
    return np.where(binary_dilation(inside, iterations=SHELL) & ~inside, 3, 0).astype(np.uint8)


def trained(
    options: argparse.Namespace,
    target: Path,
    splits: Path,
    run: Path,
    seed: int,
    source: str | None,
    keep: bool = False,
) -> Path:
    """One run on the target; one that is finished is used again."""
    if (run / "validation.json").exists():
        return run
    budget = {"steps": options.steps} if options.steps else {"minutes": options.minutes}
    start = {"from_model": source, "freeze": options.freeze, "keep_labels": keep} if source else {}
    overrides = ["training.validations=0", *options.set, *(options.set_from if source else ())]
    return train(
        target, run, splits=splits, fold=0, seed=seed, overrides=overrides, device=options.device, overwrite=True,
        **budget, **start,
    )  # fmt: skip


def against_scratch(
    options: argparse.Namespace, source: str, target: Path, splits: Path, workdir: Path, _: object
) -> None:
    """Both sides for each seed."""
    runs = {
        what: [
            trained(options, target, splits, workdir / f"{name}-{seed}", seed, model) for seed in range(options.seeds)
        ]
        for what, name, model in (("from the source", "from", source), ("from scratch", "scratch", None))
    }
    scores = {what: [scores_of(run) for run in found] for what, found in runs.items()}
    steps = {
        what: statistics.mean(read_card(run / "model.safetensors").training["steps"] for run in found)
        for what, found in runs.items()
    }
    rows: list[Row] = [
        {
            "start": what,
            "steps": round(steps[what]),
            **dice_columns(found),
            **foreground_columns(one["foreground_dice"] for one in found),
        }
        for what, found in scores.items()
    ]
    title = f"{options.dataset.name}, a merged and a new label, {TRAINED} cases, {budget_of(options)}"
    heads = [headline(f"Fine-tuning, {title}", what, "mean foreground Dice") for what in scores]
    note = (
        f"The source is {read_card(Path(source)).name if Path(source).is_file() else source}; means of {options.seeds} "
        "seeds, cases of the validation half of fold 0 that were not trained on."
    )
    publish(options, f"fine-tuning-{slug(title)}", f"Fine-tuning against scratch: {title}", [table(rows)], heads, note)


def kept(
    options: argparse.Namespace,
    source: str,
    target: Path,
    splits: Path,
    workdir: Path,
    cases: Sequence[TrainingCase],
) -> None:
    """The source's labels before and after a run that keeps them."""
    run = trained(options, target, splits, workdir / "keep", 0, source, keep=True)
    unseen = sorted(cases, key=lambda case: case.name)[TRAINED:]
    models = {"source": source, "fine-tuned with --keep-labels": str(run / "model.safetensors")}
    dice = {what: mean_dice(Segmenter.load(model, device=options.device), unseen) for what, model in models.items()}
    names = list(dice["source"])
    rows: list[Row] = [
        {
            "model": what,
            **{f"Dice {name}": round(found[name], 4) for name in names},
            "mean Dice of the source's labels": round(statistics.mean(found[name] for name in names), 4),
        }
        for what, found in dice.items()
    ]
    new = scores_of(run)["foreground_dice"]
    title = f"{options.dataset.name}, a new label beside the source's, {TRAINED} cases, {budget_of(options)}"
    heads = [headline(f"Kept labels, {title}", what, "mean Dice of the source's labels") for what in dice]
    note = f"The new label's Dice is {new:.4f} on the {len(unseen)} cases that were not trained on."
    publish(options, f"kept-labels-{slug(title)}", f"Labels kept in fine-tuning: {title}", [table(rows)], heads, note)


def budget_of(options: argparse.Namespace) -> str:
    """The budget of a run in words."""
    return f"{options.steps} steps" if options.steps else f"{options.minutes:g} minutes"


if __name__ == "__main__":
    main()
