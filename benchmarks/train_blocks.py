"""Train one fold with each kind of block for the same wall-clock budget, and compare what comes out.

    python benchmarks/train_blocks.py $VOLSEG_DATA/Task04_Hippocampus --minutes 10 --output runs/blocks [--append]

Each training runs in a process of its own; the scores are those of `volseg evaluate` on the label images that the
trained model wrote. Needs volseg, and the data set.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

from sides import as_table, publish

BLOCKS = {
    "Conv3d": ["--set", "plan.block=conv3d"],
    "(2+1)D light": ["--set", "plan.block=conv2plus1d", "--set", "plan.mid=light"],
    "(2+1)D matched": ["--set", "plan.block=conv2plus1d", "--set", "plan.mid=matched"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--fold", default="0")
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--blocks", nargs="+", choices=BLOCKS, default=list(BLOCKS)[:2])
    parser.add_argument("--append", action="store_true", help="add the table to RESULTS.md")
    options = parser.parse_args()
    rows = [measure(options, block) for block in options.blocks]
    title = f"{options.dataset.name}, fold {options.fold}, {options.minutes:g} minutes"
    command = f"python benchmarks/train_blocks.py $VOLSEG_DATA/{options.dataset.name} --minutes {options.minutes:g}"
    publish(title, command, as_table(rows), options.append)


def measure(options: argparse.Namespace, block: str) -> dict[str, object]:
    """Train with one kind of block; one row of the table."""
    run = options.output / block.replace(" ", "_").replace("(", "").replace(")", "").replace("+", "plus")
    volseg = [sys.executable, "-m", "volseg"]
    train = ["train", str(options.dataset), "--output", str(run), "--fold", options.fold, "--resume"]
    subprocess.run(
        [*volseg, *train, *([] if run.exists() else ["--minutes", str(options.minutes), *BLOCKS[block]])],
        check=True,
        stdout=sys.stderr,
    )
    labels = ["--labels", str(options.dataset / "dataset.json"), "--json"]
    evaluate = ["evaluate", str(run / "validation"), str(options.dataset / "labelsTr"), *labels]
    scores = json.loads(subprocess.run([*volseg, *evaluate], check=True, stdout=subprocess.PIPE).stdout)
    profile = [*volseg, "profile", "--model", str(run / "model.safetensors"), "--json"]
    cost = json.loads(subprocess.run(profile, check=True, stdout=subprocess.PIPE).stdout)["blocks"]
    total = next(one["stages"][-1] for name, one in cost.items() if matches(block, name))
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        "block": block,
        "parameters": f"{total['parameters']:,}",
        "GFLOP per patch, forward": f"{total['gflops']:.2f}",
        "steps": last["step"],
        "seconds": f"{last['seconds']:.0f}",
        **{f"Dice {name}": f"{row['dice']:.4f}" for name, row in scores["mean"]["labels"].items()},
        "mean foreground Dice": f"{scores['mean']['foreground_dice']:.4f}",
        "cases": len(scores["cases"]),
        "largest process so far, GiB": f"{resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20:.2f}",
    }


def matches(block: str, profiled: str) -> bool:
    """Whether a profile's name is that of a row of this table."""
    return profiled.lower().split()[-1] == block.lower().split()[-1]


if __name__ == "__main__":
    main()
