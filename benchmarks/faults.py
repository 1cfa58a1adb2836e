"""Faults in every verb that writes (tests/faults): system calls that fail, kills, and what is left then.

    python benchmarks/faults.py [--scenes predict,train] [--injections 100] [--kills 50] [--seed 0] [--jobs 2]
                                [--share 1] [--record]

For each scene, the calls of an undisturbed command on its output, run, cache and temporary folder are counted. Of
predict and evaluate every call is tried, with every error that it can give and with a kill; of the others as many as
the options say, and as many kills at random moments. A trial is right if the command ends with a sentence or by the
kill, if old or new results are there, whole, and if the next command ends as if nothing had happened. Prints the
counts, and each finding; exit code 1 if there is one.
"""

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common.record import CHECKOUT, publish, record_options
from common.results import headline, table

# The trials are part of the tests, which are not installed.
sys.path.insert(0, str(CHECKOUT))

from tests.faults.client import Fault, Server, build_shim
from tests.faults.scenes import SCENES, Scene, Stage
from tests.faults.trials import Trial, faults_at, kills_at, run_trial

# Scenes of which every call is tried.
WHOLE = ("predict", "predict --overwrite", "evaluate", "evaluate again")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", default=",".join(SCENES), help="names, with commas between them")
    parser.add_argument("--injections", type=int, default=100, help="of train; a fourth of them of other verbs")
    parser.add_argument("--kills", type=int, default=100, help="of train; a fourth of them of other verbs")
    parser.add_argument("--share", type=int, default=1, help="of predict and evaluate, try one fault of so many")
    parser.add_argument("--seed", type=int, default=0, help="of the calls and moments that are drawn")
    parser.add_argument("--jobs", type=int, default=2, help="scenes at a time")
    record_options(parser)
    options = parser.parse_args()
    names = options.scenes.split(",")
    if unknown := set(names) - set(SCENES):
        parser.error(f"no such scene: {', '.join(sorted(unknown))}; there are {', '.join(SCENES)}")
    folder = Path(tempfile.mkdtemp(prefix="volseg-faults-"))
    try:
        shim = build_shim(folder)
        if shim is None:
            sys.exit("Faults need Linux and a C compiler (cc).")
        with ThreadPoolExecutor(options.jobs) as pool:
            rows = list(pool.map(lambda name: play(SCENES[name], folder, shim, options), names))
    finally:
        shutil.rmtree(folder)
    total = {"scene": "all", **{key: sum(row[key] for row in rows) for key in rows[0] if key != "scene"}}
    publish(
        options, "faults", "Faults of the system and kills, in every verb that writes", [table([*rows, total])],
        [headline(f"{total['injections']} failing calls and {total['kills']} kills", "all", "findings")],
        note="Writes to the pages of memory-mapped files are no system calls and are not among these.",
    )  # fmt: skip
    sys.exit(bool(total["findings"]))


def play(scene: Scene, folder: Path, shim: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The counts of a scene; its findings are printed."""
    with Server(shim) as server:
        stage = Stage(scene, folder / scene.name.replace(" ", "_"), server)
        calls = stage.undisturbed.calls
        faults = drawn(stage, options)
        trials = []
        for number, fault in enumerate(faults, 1):
            trials.append(run_trial(stage, fault))
            if trials[-1].problems:
                print(trials[-1], flush=True)
            if number % 50 == 0:
                print(f"{scene.name}: {number} of {len(faults)} trials", file=sys.stderr, flush=True)
    findings = [trial for trial in trials if trial.problems]
    print(f"{scene.name}: {len(trials)} trials, {len(findings)} findings", file=sys.stderr, flush=True)
    return {"scene": scene.name, "calls": len(calls), **counts(trials), "findings": len(findings)}


def counts(trials: list[Trial]) -> dict[str, int]:
    """How many calls failed, and how many kills there were; what ended before its fault came is in neither."""

    def number(right: Callable[[Trial], bool]) -> int:
        return sum(map(right, trials))

    return {
        "injections": number(lambda one: one.fault.mode in ("fail", "sticky") and one.call is not None),
        "kills": number(lambda one: one.code == -9),
        "ended well": number(lambda one: one.code == 0),
        "ended with a sentence": number(lambda one: one.code not in (0, -9)),
    }


def drawn(stage: Stage, options: argparse.Namespace) -> list[Fault]:
    """The faults that are tried: all of the whole scenes, some of the others."""
    chance = random.Random(f"{options.seed} {stage.scene.name}")
    calls = list(enumerate(stage.undisturbed.calls, 1))
    injections = [fault for number, call in calls for fault in faults_at(number, call)]
    kills = [fault for number, call in calls for fault in kills_at(number, call)]
    if stage.scene.name in WHOLE:
        return [*injections, *kills][:: options.share]
    parts = 1 if stage.scene.name == "train" else 4
    some, few = options.injections // parts, options.kills // parts
    seconds = stage.undisturbed.seconds
    return [
        *chance.sample(injections, min(some, len(injections))),
        *chance.sample(kills, min(few, len(kills))),
        *(Fault(seconds=chance.uniform(0.01, seconds)) for _ in range(few)),
    ]


if __name__ == "__main__":
    main()
