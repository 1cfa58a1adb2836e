"""How many wrong labels volseg audit finds: errors are injected into a tenth of a dataset's references.

    python benchmarks/audit.py DATASET [--model hippocampus] [--seeds 3] [--record]
    python benchmarks/audit.py DATASET --work FOLDER --steps 600 [--folds 5] [--set key=value]... [--record]
    python benchmarks/audit.py DATASET --work FOLDER --runs RUN... [--record]

The first form needs no training: each member of an ensemble, trained on the dataset as it is, segments the cases that
it has not seen, and errors are in the references only. The second is the strict one: runs are trained on the dataset
with its errors, which the models may learn. The third audits runs that were trained on FOLDER/dataset before, which the
first call with --work makes.

The errors, in turn over randomly chosen cases: two labels exchanged; all labels shifted by two voxels along an axis;
three consecutive slices dropped, anywhere between the first and the last; one label missing; all labels mirrored along
an axis. Axes, directions, slices and labels are random. The figures are the errors that are among the first 12 % and
15 % of the ranking.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
from common.record import publish, record_options, slug
from common.results import Row, headline, table

import volseg
from volseg.api.audit.case import examine
from volseg.api.audit.runs import AuditedRun
from volseg.auditing.ranking import score_cases
from volseg.data.cases.dataset import TrainingCase, open_dataset, split_folds
from volseg.data.folds import choose_fold
from volseg.training.run.settings import RunSettings

FRACTION = 0.1
FIRST = (0.12, 0.15)
SHIFT, SLICES = 2, 3
KINDS = ("swapped labels", "shifted by two voxels", "dropped slices", "missing label", "flipped")
Errors = dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="a Decathlon folder of NIfTI files")
    parser.add_argument("--model", default="hippocampus", help="an ensemble of folds: a bundled name or a model file")
    parser.add_argument("--seeds", type=int, default=1, help="how often errors are injected anew, with --model")
    parser.add_argument("--seed", type=int, default=0, help="of the first injection")
    parser.add_argument("--work", type=Path, help="a folder for the dataset with errors and the runs")
    parser.add_argument("--steps", type=int, help="train runs of so many steps on the dataset with errors")
    parser.add_argument("--folds", type=int, default=5, help="of these runs")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="key=value for these runs")
    parser.add_argument("--runs", type=Path, nargs="+", help="runs that were trained on WORK/dataset")
    parser.add_argument("--device", default="cpu")
    record_options(parser)
    options = parser.parse_args()
    if (options.steps or options.runs) and not options.work:
        parser.error("--steps and --runs need --work.")
    if options.steps or options.runs:
        errors = with_errors(options.dataset, options.work / "dataset", options.seed)
        runs = options.runs or trained(options)
        document = volseg.audit(runs, options.work / "audit", dataset=options.work / "dataset", device=options.device)
        rankings = [([case["name"] for case in document["cases"]], errors)]
        how = f"runs trained on them, {options.steps} steps" if options.steps else "runs trained on them"
    else:
        rankings = [of_members(options, options.seed + number) for number in range(options.seeds)]
        how = f"{options.model} out of fold, trained without errors"
    report(options, rankings, how)


def with_errors(dataset: Path, folder: Path, seed: int) -> Errors:
    """A copy of a dataset with errors in a tenth of its references; made once. Case name to the kind of its error."""
    listed = folder / "errors.json"
    if listed.exists():
        return json.loads(listed.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labelsTr").mkdir(exist_ok=True)
    (folder / "imagesTr").mkdir(exist_ok=True)
    data = open_dataset(dataset)
    rng = np.random.default_rng(seed)
    wrong = rng.permutation(len(data.cases))[: round(FRACTION * len(data.cases))]
    errors = {data.cases[index].name: KINDS[number % len(KINDS)] for number, index in enumerate(wrong)}
    for case in data.cases:
        for path in case.images:
            shutil.copy(path, folder / "imagesTr" / path.name)
        target = folder / "labelsTr" / case.label.name
        shutil.copy(case.label, target)
        if case.name in errors:
            image = nibabel.load(case.label)
            labels = spoilt(np.asarray(image.dataobj).astype(np.uint8), errors[case.name], rng)
            nibabel.save(nibabel.Nifti1Image(labels, image.affine, image.header, dtype=np.uint8), target)
    shutil.copy(dataset / "dataset.json", folder / "dataset.json")
    listed.write_text(json.dumps(errors, indent=2))
    return errors


def spoilt(labels: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """A label image (I, J, K) with an error."""
    values = np.unique(labels[labels > 0])
    axis = int(rng.integers(3))
    if kind == "swapped labels":
        one, other = rng.choice(values, 2, replace=False)
        return np.where(labels == one, other, np.where(labels == other, one, labels))
    if kind == "shifted by two voxels":
        step = int(rng.choice([-SHIFT, SHIFT]))
        moved = np.roll(labels, step, axis)
        edge = [slice(None)] * 3
        edge[axis] = slice(0, step) if step > 0 else slice(step, None)
        moved[tuple(edge)] = 0
        return moved
    if kind == "dropped slices":
        there = np.flatnonzero(labels.any((0, 1)))
        first = int(rng.integers(there[0], there[-1] + 2 - SLICES))
        without = labels.copy()
        without[:, :, first : first + SLICES] = 0
        return without
    if kind == "missing label":
        return np.where(labels == rng.choice(values), 0, labels).astype(np.uint8)
    return np.flip(labels, axis).copy()


def trained(options: argparse.Namespace) -> list[Path]:
    """Runs of all folds on the dataset with errors; a finished one is kept."""
    runs = [options.work / f"fold{fold}" for fold in range(options.folds)]
    for fold, run in enumerate(runs):
        volseg.train(
            options.work / "dataset", run, fold=fold, folds=options.folds, steps=options.steps, resume=True,
            overrides=() if run.exists() else options.overrides, device=options.device,
        )  # fmt: skip
    return runs


def of_members(options: argparse.Namespace, seed: int) -> tuple[list[str], Errors]:
    """The ranking by the members of an ensemble, each on the cases of its fold, and the errors."""
    whole = volseg.Segmenter.load(options.model, options.device)
    with tempfile.TemporaryDirectory() as work:
        errors = with_errors(options.dataset, Path(work), seed)
        data = open_dataset(Path(work))
        by_name: dict[str, TrainingCase] = {case.name: case for case in data.cases}
        folds = split_folds(data)
        examined = []
        for network, record in zip(whole.labeller.network.members, whole.card.training["members"], strict=True):
            segmenter = replace(whole, labeller=replace(whole.labeller, network=network))
            cases = tuple(by_name[name] for name in choose_fold(folds, record["fold"])["val"])
            run = AuditedRun(Path(work), RunSettings(fold=record["fold"]), whole.card, cases, (), frozenset())
            examined += [examine(segmenter, run, case, None) for case in cases]
    scores = [score.value for score in score_cases([one.audited for one in examined])]
    order = sorted(range(len(examined)), key=lambda index: -scores[index])
    return [examined[index].case.name for index in order], errors


def report(options: argparse.Namespace, rankings: Sequence[tuple[list[str], Errors]], how: str) -> None:
    """Print how many errors of each kind are among the first of the rankings."""
    rows: list[Row] = []
    for kind in (*KINDS, "all"):
        ranks = [
            (ranking.index(name) + 1) / len(ranking)
            for ranking, errors in rankings
            for name, own in errors.items()
            if kind in ("all", own) and name in ranking
        ]
        if ranks:
            found = {
                f"found in the first {first:.0%}": round(statistics.fmean(rank <= first for rank in ranks), 3)
                for first in FIRST
            }
            rows.append({"error": kind, "errors": len(ranks), **found, "worst rank in %": round(100 * max(ranks), 1)})
    cases = len(rankings[0][0])
    publish(
        options,
        f"audit-{slug('trained' if options.steps or options.runs else Path(options.model).stem)}",
        f"Wrong labels found by volseg audit in {options.dataset.name}: {cases} cases, {how}",
        [table(rows)],
        [headline(f"wrong labels found, {how}", "all", f"found in the first {FIRST[-1]:.0%}")],
        note=f"Errors in {FRACTION:.0%} of the references, {len(rankings)} time(s); a perfect ranking finds all.",
    )


if __name__ == "__main__":
    main()
