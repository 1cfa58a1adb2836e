"""Train with each kind of block for the same wall-clock budget, over several seeds, and compare what comes out.

    python benchmarks/block_study.py $VOLSEG_DATA/Task04_Hippocampus --minutes 3 --output runs/blocks [--append]

Each training is `volseg train` in a process of its own, one after the other; block after block within a seed, so that a
change of the machine's speed meets all of them. A run that is finished is not trained again. Dice is that of the label
images that the trained model wrote for the fold's validation cases; the same scans are then segmented once more by
`volseg predict` to time it, from process start to end. For an anisotropic task see `thick_slices.py`. Needs volseg, and
the dataset.
"""

import argparse
import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sides import Side, as_table, publish, run_command

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
    parser.add_argument("--append", action="store_true", help="add the tables to RESULTS.md")
    options = parser.parse_args()
    runs: dict[str, list[Path]] = {block: [] for block in BLOCKS}
    for seed in range(options.seeds):
        for block, found in runs.items():
            found.append(trained(options, block, seed))
    title = f"Blocks: {options.dataset.name}, fold {options.fold}, {options.minutes:g} minutes, {options.seeds} seeds"
    command = (
        f"python benchmarks/block_study.py {options.dataset.name} --minutes {options.minutes:g} --seeds {options.seeds}"
    )
    rows = [row(block, found) for block, found in runs.items()]
    curves = [line for block, found in runs.items() for line in curve(block, found)]
    publish(title, command, f"{as_table(rows)}\n\n{as_table(curves)}", options.append)


def trained(options: argparse.Namespace, block: str, seed: int) -> Path:
    """The run of one block and seed, finished, and measured: see `sides_file`."""
    run: Path = options.output / f"{'_'.join(word for word in BLOCKS[block] if '=' in word)}-seed{seed}"
    if sides_file(run).exists():
        return run
    budget = ["--minutes", str(options.minutes), "--fold", options.fold, "--seed", str(seed)]
    print(f"{block}, seed {seed}", file=sys.stderr)
    training = run_command([*VOLSEG, "train", options.dataset, "--output", run, *budget, *BLOCKS[block], "--overwrite"])
    validation = {case["name"] for case in json.loads((run / "validation.json").read_text())["cases"]}
    scans = [path for path in sorted((options.dataset / "imagesTr").iterdir()) if path.name.split(".")[0] in validation]
    answers = ["--output", options.output / "timed", "--overwrite"]
    predicting = run_command([*VOLSEG, "predict", *scans, "--model", run / "model.safetensors", *answers])
    sides = {"training": asdict(training), "predicting": asdict(predicting), "scans": len(scans)}
    sides_file(run).write_text(json.dumps(sides))
    return run


def sides_file(run: Path) -> Path:
    """Where it stands what a run took; a run folder holds nothing but the run."""
    return run.with_name(f"{run.name}.json")


def row(block: str, runs: list[Path]) -> dict[str, object]:
    """What one kind of block costs and reaches: the mean over the seeds, of Dice the lowest and highest beside it."""
    profile = run_command([*VOLSEG, "profile", "--model", runs[0] / "model.safetensors", "--json"])
    cost = next(
        found["stages"][-1] for name, found in json.loads(profile.printed)["blocks"].items() if matches(block, name)
    )
    means = [json.loads((run / "validation.json").read_text())["mean"] for run in runs]
    sides = [json.loads(sides_file(run).read_text()) for run in runs]
    last = [records(run)[-1] for run in runs]
    return {
        "block": block,
        "parameters": f"{cost['parameters']:,}",
        "GFLOP per patch, forward": f"{cost['gflops']:.2f}",
        "steps per second": f"{statistics.mean(one['step'] / one['seconds'] for one in last):.2f}",
        **{
            f"Dice {name}": f"{statistics.mean(mean['labels'][name]['dice'] for mean in means):.4f}"
            for name in means[0]["labels"]
        },
        "mean foreground Dice": spread([mean["foreground_dice"] for mean in means]),
        "seconds per scan": f"{statistics.mean(Side(**one['predicting']).seconds / one['scans'] for one in sides):.3f}",
        "peak GiB training": f"{max(Side(**one['training']).peak_gib for one in sides):.2f}",
        "peak GiB predicting": f"{max(Side(**one['predicting']).peak_gib for one in sides):.2f}",
    }


def curve(block: str, runs: list[Path]) -> list[dict[str, object]]:
    """Dice of the averaged weights on the way: a row per validation, the means over the seeds.

    A run so short that a validation outlasts its share leaves the next one out; then the last ones are not compared.
    """
    scored = [[record for record in records(run) if "foreground_dice" in record] for run in runs]
    return [
        {
            "block": block,
            "seconds": f"{statistics.mean(record['seconds'] for record in at):.0f}",
            "steps": f"{statistics.mean(record['step'] for record in at):.0f}",
            "mean foreground Dice": spread([record["foreground_dice"] for record in at]),
        }
        for at in zip(*scored, strict=False)
    ]


def spread(values: list[float]) -> str:
    """The mean, and the lowest and highest."""
    return f"{statistics.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def records(run: Path) -> list[dict[str, Any]]:
    """The steps of a run."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def matches(block: str, profiled: str) -> bool:
    """Whether a profile's name is that of a row of this table."""
    return profiled.lower().split()[-1] == block.lower().split()[-1]


if __name__ == "__main__":
    main()
