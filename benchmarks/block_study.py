"""Train with each kind of convolution block for the same wall-clock budget, over several seeds, and compare the Dice.

    python benchmarks/block_study.py $VOLSEG_DATA/Task04_Hippocampus --minutes 3 --output runs/blocks [--record]

Each training is `volseg train` in its own process, one after the other, block after block within a seed, so that
changes of the machine's speed affect all of them. A finished run is not trained again. Dice is that of the label images
that the trained model wrote for the validation cases of the fold; `volseg predict` then segments the same scans once
more to time it, from process start to end. For an anisotropic task see `data/thick_slices.py`. Needs volseg and the
dataset.
"""

import argparse
import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

from common.record import publish, record_options, slug
from common.results import Row, headline, ratio, rounded, table
from common.runs import dice_columns, foreground_columns, scores_of, steps_of, validation_curve
from common.sides import Side, run_command

BLOCKS = {
    "Conv3d": ["--set", "plan.block=conv3d"],
    "(2+1)D light": ["--set", "plan.block=conv2plus1d", "--set", "plan.mid=light"],
    "(2+1)D matched": ["--set", "plan.block=conv2plus1d", "--set", "plan.mid=matched"],
}
VOLSEG = [sys.executable, "-m", "volseg"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fold", default="0")
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs")
    record_options(parser)
    options = parser.parse_args()
    runs: dict[str, list[Path]] = {block: [] for block in BLOCKS}
    for seed in range(options.seeds):
        for block, found in runs.items():
            found.append(trained(options, block, seed))
    what = f"{options.dataset.name}, fold {options.fold}, {options.minutes:g} minutes"
    rows = [row(block, found) for block, found in runs.items()]
    curves = [{"block": block, **line} for block, found in runs.items() for line in validation_curve(found)]
    publish(
        options,
        f"blocks-{slug(what)}",
        f"Convolution blocks: {what}",
        [
            table(rows, [ratio("difference", "mean foreground Dice", baseline="Conv3d")]),
            *([table(curves, caption="Validation during training, EMA of the weights")] if curves else []),
        ],
        [headline(f"(2+1)D light blocks, {what}", "(2+1)D light", "mean foreground Dice")],
        note=f"Means over {options.seeds} seeds, with the lowest and highest Dice.",
    )


def trained(options: argparse.Namespace, block: str, seed: int) -> Path:
    """The run of one block and seed, trained and measured: see `sides_file`."""
    run: Path = options.output / f"{'_'.join(word for word in BLOCKS[block] if '=' in word)}-seed{seed}"
    if sides_file(run).exists():
        return run
    budget = ["--minutes", str(options.minutes), "--fold", options.fold, "--seed", str(seed)]
    print(f"{block}, seed {seed}", file=sys.stderr)
    training = run_command([*VOLSEG, "train", options.dataset, "--output", run, *budget, *BLOCKS[block], "--overwrite"])
    validation = {case["name"] for case in json.loads((run / "validation.json").read_text())["cases"]}
    scans = [path for path in sorted((options.dataset / "imagesTr").iterdir()) if path.name.split(".")[0] in validation]
    output = ["--output", options.output / "timed", "--overwrite"]
    predicting = run_command([*VOLSEG, "predict", *scans, "--model", run / "model.safetensors", *output])
    sides = {"training": asdict(training), "predicting": asdict(predicting), "scans": len(scans)}
    sides_file(run).write_text(json.dumps(sides))
    return run


def sides_file(run: Path) -> Path:
    """The file with the time and memory of a run, next to its folder."""
    return run.with_name(f"{run.name}.json")


def row(block: str, runs: list[Path]) -> Row:
    """Cost and Dice of one kind of block: means over the seeds, with the lowest and highest Dice."""
    profile = run_command([*VOLSEG, "profile", "--model", runs[0] / "model.safetensors", "--json"])
    cost = next(
        found["stages"][-1] for name, found in json.loads(profile.printed)["blocks"].items() if matches(block, name)
    )
    scores = [scores_of(run) for run in runs]
    sides = [json.loads(sides_file(run).read_text()) for run in runs]
    last = [steps_of(run)[-1] for run in runs]
    return {
        "block": block,
        "parameters": cost["parameters"],
        "GFLOP per patch, forward": rounded(cost["gflops"]),
        "steps per second": rounded(statistics.mean(one["step"] / one["seconds"] for one in last)),
        **dice_columns(scores),
        **foreground_columns(one["foreground_dice"] for one in scores),
        "seconds per scan": rounded(statistics.mean(Side(**one["predicting"]).seconds / one["scans"] for one in sides)),
        "peak GiB training": rounded(max(Side(**one["training"]).peak_gib for one in sides)),
        "peak GiB predicting": rounded(max(Side(**one["predicting"]).peak_gib for one in sides)),
    }


def matches(block: str, profiled: str) -> bool:
    """Whether a name in the profile is that of a row."""
    return profiled.lower().split()[-1] == block.lower().split()[-1]


if __name__ == "__main__":
    main()
