"""Fuzz the readers: mutated files of every format whose right volume is known (tests/fuzzing).

    python benchmarks/fuzz.py [--seeds 0:20000] [--formats nii,mha] [--resume FILE] [--jobs 2] [--record]
    python benchmarks/fuzz.py --seed 4711

A chunk of seeds runs in a process of its own, so that a crash or a hang is a finding of one seed. Prints how many
inputs of each format came to what, and each finding as a line of JSON; exit code 1 if there is one. With --resume, the
outcome of each seed is appended to FILE, and seeds that are in it are not run again. --seed shows one input and keeps
its files in the current folder.
"""

import argparse
import json
import multiprocessing
import multiprocessing.pool
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

from common.record import CHECKOUT, publish, record_options
from common.results import headline, table

# The fuzzer is part of the tests, which are not installed.
sys.path.insert(0, str(CHECKOUT))

from tests.fuzzing import FORMATS, GOOD, format_of, make_input, outcome_of

CHUNK = 250
SECONDS_PER_SEED, SECONDS_TO_START = 20, 120
# A header that promises a terabyte is no reason to ask for it.
MEMORY_BYTES = 12 * 2**30
Result = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0:20000", help="from:to")
    parser.add_argument("--formats", default=",".join(FORMATS), help="names of formats, with commas between them")
    parser.add_argument("--resume", type=Path, help="a file of outcomes, which is continued")
    parser.add_argument("--seed", type=int, help="show one")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    record_options(parser)
    options = parser.parse_args()
    if options.seed is not None:
        sys.exit(show(options.seed))
    names = options.formats.split(",")
    if unknown := set(names) - set(FORMATS):
        parser.error(f"no such format: {', '.join(sorted(unknown))}; there are {', '.join(FORMATS)}")
    first, last = map(int, options.seeds.split(":"))
    seeds = [seed for seed in range(first, last) if format_of(seed) in names]
    results = run(seeds, options.resume, options.jobs)
    findings = [one for one in results if one["outcome"] not in GOOD]
    for one in findings:
        print(json.dumps(one, ensure_ascii=False))
    title = "Mutated files of every format: what reading came to"
    publish(
        options, "reading-fuzz", title, [counts(results)],
        [headline(f"{len(results)} mutated files", "all", "findings")],
    )  # fmt: skip
    sys.exit(bool(findings))


def counts(results: list[Result]) -> dict[str, Any]:
    """How many inputs of each format came to what."""
    kinds = [*GOOD, *sorted({one["outcome"] for one in results} - set(GOOD))]
    rows = []
    for name in [*FORMATS, "all"]:
        count = Counter(one["outcome"] for one in results if name in (one["format"], "all"))
        if count:
            findings = sum(number for kind, number in count.items() if kind not in GOOD)
            rows.append({"format": name, **{kind: count[kind] for kind in kinds}, "findings": findings})
    return table(rows)


def run(seeds: list[int], resume: Path | None, jobs: int) -> list[Result]:
    """The outcomes of seeds, in their order; those that a file has are taken from it."""
    done: dict[int, Result] = {}
    if resume is not None and resume.exists():
        lines = resume.read_text(encoding="utf-8").splitlines()
        done = {one["seed"]: one for one in map(json.loads, lines) if one["seed"] in set(seeds)}
    left = [seed for seed in seeds if seed not in done]
    chunks = [left[at : at + CHUNK] for at in range(0, len(left), CHUNK)]
    with multiprocessing.pool.ThreadPool(jobs) as pool:
        kept: TextIO | None = open(resume, "a", encoding="utf-8") if resume is not None else None  # noqa: SIM115
        for number, chunk in enumerate(pool.imap(lambda one: list(run_chunk(one)), chunks), 1):
            done |= {one["seed"]: one for one in chunk}
            if kept is not None:
                kept.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in chunk)
                kept.flush()
            print(f"{number} of {len(chunks)} chunks", file=sys.stderr)
        if kept is not None:
            kept.close()
    return [done[seed] for seed in sorted(done)]


def run_chunk(seeds: list[int]) -> Iterator[Result]:
    """The outcomes of some seeds, computed in processes of their own: a new one after each crash or hang."""
    context = multiprocessing.get_context("spawn")
    left = list(seeds)
    while left:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(left, theirs))
        process.start()
        theirs.close()
        patience = SECONDS_TO_START
        while left:
            if not ours.poll(patience):
                yield result(left.pop(0), "hang", f"no answer within {patience} s")
                break
            try:
                yield ours.recv()
            except EOFError:
                process.join()
                yield result(left.pop(0), "crash", f"the process ended with code {process.exitcode}")
                break
            left.pop(0)
            patience = SECONDS_PER_SEED
        process.kill()
        process.join()


def work(seeds: list[int], results: Connection) -> None:
    """Send the outcome of each seed."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for seed in seeds:
        with tempfile.TemporaryDirectory(prefix="volseg-fuzz-") as folder:
            one = make_input(seed, Path(folder))
            outcome = outcome_of(one)
            results.send(result(seed, outcome.kind, outcome.detail, one.change))


def result(seed: int, outcome: str, detail: str, change: str = "") -> Result:
    return {"seed": seed, "format": format_of(seed), "change": change, "outcome": outcome, "detail": detail}


def show(seed: int) -> int:
    """Print one input, what is right for it, and what reading it came to; its files stay."""
    folder = Path(f"fuzz-{seed}")
    folder.mkdir()
    one = make_input(seed, folder)
    print(f"{one.path}: {one.format}, {one.change}")
    print(f"right: {len(one.right.volumes) or 'no'} volume(s), a warning with one of {one.right.warn or 'none'}")
    for volume in one.right.volumes:
        print(f"shape {volume.voxels.shape}, affine\n{volume.affine}, spacing {volume.spacing}")
    outcome = outcome_of(one)
    print(f"{outcome.kind}: {outcome.detail}")
    return outcome.kind not in GOOD


if __name__ == "__main__":
    main()
