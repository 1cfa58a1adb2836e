"""Faults in every verb that writes (tests/faults): system calls that fail, kills, and what is left then.

    python benchmarks/faults.py [--scenes predict,train] [--injections 100] [--kills 50] [--minutes 5] [--seed 0]
                                [--jobs 2] [--record]

For each scene, the calls of an undisturbed command on its output, run, cache and temporary folder are counted. Of
predict and evaluate every call is tried, with every error that it can give and with a kill; of the others as many as
the options say. Half of their kills come at random moments. A trial is right if the command ends with a sentence or by
the kill, if old or new results are there, whole, and if the next command ends as if nothing had happened: a resumed run
has the weights of an undisturbed one, bit for bit. Prints each finding when it comes, and the counts; exit code 1 if
there is a finding.

The node is not among the scenes: tests/node/test_crash.py kills it while it receives, segments and sends.
"""

import argparse
import math
import random
import shutil
import sys
import tempfile
import time
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
# Seconds after which a trial hangs, on a busy machine too.
PATIENCE = 300.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", default=",".join(SCENES), help="names, with commas between them")
    parser.add_argument("--injections", type=int, default=100, help="of train; a fourth of them of other verbs")
    parser.add_argument("--kills", type=int, default=50, help="of train; half of them of other verbs")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of a scene, which then tries no more faults")
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
    with Server(shim, PATIENCE) as server:
        stage = Stage(scene, folder / scene.name.replace(" ", "_"), server)
        calls = stage.undisturbed.calls
        faults = drawn(stage, options)
        started, trials = time.monotonic(), []
        for number, fault in enumerate(faults, 1):
            if time.monotonic() - started > 60 * options.minutes:
                break
            trials.append(run_trial(stage, fault))
            if trials[-1].problems:
                print(trials[-1], flush=True)
            if number % 10 == 0:
                print(f"{scene.name}: {number} of {len(faults)} trials", file=sys.stderr, flush=True)
    findings = [trial for trial in trials if trial.problems]
    seconds = time.monotonic() - started
    print(f"{scene.name}: {len(trials)} trials in {seconds:.0f} s, {len(findings)} findings",
          file=sys.stderr, flush=True)  # fmt: skip
    left = len(faults) - len(trials)
    return {"scene": scene.name, "calls": len(calls), **counts(trials), "left out": left, "findings": len(findings)}


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
    """The faults that are tried, in random order: all of the whole scenes, some of the others."""
    chance = random.Random(f"{options.seed} {stage.scene.name}")
    calls = list(enumerate(stage.undisturbed.calls, 1))
    injections = [fault for number, call in calls for fault in faults_at(number, call)]
    kills = [fault for number, call in calls for fault in kills_at(number, call)]
    if stage.scene.name not in WHOLE:
        alone = stage.scene.name == "train"
        some, few = (options.injections, options.kills) if alone else (options.injections // 4, options.kills // 2)
        moments = [Fault(seconds=chance.uniform(0.01, stage.undisturbed.seconds)) for _ in range(few // 2)]
        injections = chance.sample(injections, min(some, len(injections)))
        kills = [*chance.sample(kills, min(few - len(moments), len(kills))), *moments]
    faults = [*injections, *kills]
    chance.shuffle(faults)
    return faults


if __name__ == "__main__":
    main()
