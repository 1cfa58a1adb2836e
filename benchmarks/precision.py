"""How the precision changes the labels: Dice on the validation cases of a fold, in each precision.

    python benchmarks/precision.py MODEL DATASET [--fold 0] [--cases N] [--device cpu|cuda] [--record]

Needs volseg, a model file and the dataset it was trained on; the fold is the model's own unless given. A processor
without native bfloat16 emulates it, up to a hundred times slower than float32: use few cases there.
"""

import argparse
import statistics
from pathlib import Path

from common.record import publish, record_options, slug
from common.results import headline, ratio, table

from volseg import Segmenter
from volseg.data.cases.dataset import TrainingCase, open_dataset, split_folds
from volseg.data.folds import choose_fold
from volseg.data.io.reading import read_channels, read_label
from volseg.evaluation.overlap import label_overlaps

REFERENCE = "fp32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--fold", type=int)
    parser.add_argument("--cases", type=int, help="use only the first N by name")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precisions", nargs="+", default=["bf16"], help=f"to compare with {REFERENCE}")
    record_options(parser)
    options = parser.parse_args()
    names = [REFERENCE, *options.precisions]
    segmenters = {name: Segmenter.load(options.model, options.device, name) for name in names}
    fold = segmenters[REFERENCE].card.training.get("fold", 0) if options.fold is None else options.fold
    cases = held_out(options.dataset, fold)[: options.cases]
    dice = {name: mean_dice(segmenter, cases) for name, segmenter in segmenters.items()}
    rows = [
        {"precision": name, **{f"Dice {label}": round(mean, 5) for label, mean in means.items()}}
        for name, means in dice.items()
    ]
    columns = list(rows[0])[1:]
    # The overview shows the label that changes most in the first of the precisions.
    most = max(columns, key=lambda column: abs(rows[1][column] - rows[0][column]))
    publish(
        options,
        f"precision-{slug(options.model.stem)}",
        f"Precision: {options.model.stem} on {options.dataset.name}, {len(cases)} validation cases",
        [table(rows, [ratio("difference", column, baseline=REFERENCE) for column in columns])],
        [headline(f"{options.precisions[0]} against {REFERENCE}, {options.model.stem}", options.precisions[0], most)],
    )


def held_out(dataset: Path, fold: int | str) -> list[TrainingCase]:
    """The cases that a model of this fold was not trained on."""
    data = open_dataset(dataset)
    names = set(choose_fold(split_folds(data), fold)["val"])
    return [case for case in data.cases if case.name in names]


def mean_dice(segmenter: Segmenter, cases: list[TrainingCase]) -> dict[str, float]:
    """Mean Dice per label; cases in which neither reference nor prediction has a label do not count for it."""
    channels = len(segmenter.card.plan.channels)
    values = {label.name: label.value for label in segmenter.card.plan.labels}
    found: dict[str, list[float]] = {name: [] for name in values}
    for case in cases:
        labels = segmenter(read_channels(case.images, channels)).labels
        reference = read_label(case.label).channels[0]
        for name, overlap in label_overlaps(labels, reference, values, 1.0).items():
            if overlap.dice is not None:
                found[name].append(overlap.dice)
    return {name: statistics.mean(dice) for name, dice in found.items()}


if __name__ == "__main__":
    main()
