"""Mutated files of every format: the right volume, the right volume with a warning that says so, or one sentence."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.fuzzing import FORMATS, GOOD, Input, format_of, make_input, outcome_of, outcomes
from volseg.data.grid.geometry import Geometry
from volseg.errors import InputError

COUNT = 300


@pytest.mark.parametrize("name", FORMATS)
def test_mutated_files_are_read_rightly_or_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    """The long run is benchmarks/fuzz.py, which also shows one seed: python benchmarks/fuzz.py --seed N."""
    seeds = [seed for seed in range(COUNT) if format_of(seed) == name]
    assert len(seeds) >= COUNT // len(FORMATS)
    findings = []
    for seed in seeds:
        folder = tmp_path / str(seed)
        folder.mkdir()
        one = make_input(seed, folder)
        outcome = outcome_of(one)
        if outcome.kind not in GOOD:
            findings.append(f"seed {seed}: {one.change}: {outcome.kind}: {outcome.detail}")
    assert findings == []


def test_a_seed_makes_the_same_input_again(tmp_path: Path) -> None:
    for seed in range(len(FORMATS)):
        made = []
        for folder in (tmp_path / f"{seed}a", tmp_path / f"{seed}b"):
            folder.mkdir()
            one = make_input(seed, folder)
            files = sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix != ".zip")
            made.append((one.change, one.right.warn, [file.read_bytes() for file in files]))
        assert made[0] == made[1]


def test_the_fuzzer_tells_right_from_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that is off by a millimetre or by a value does not pass, and neither does one that cannot read."""
    one = next(one for one in inputs_of("nii", tmp_path) if one.change == "nothing")
    scan = outcomes.read_scan(one.path)
    moved = scan.geometry.affine.copy()
    moved[0, 3] += 1
    wrong = {
        "place": replace(scan, geometry=Geometry(scan.geometry.shape, moved)),
        "values": replace(scan, channels=(scan.channels[0] + 1,)),
        "order": replace(scan, channels=(np.flip(scan.channels[0], 0),)),
    }
    assert outcome_of(one).kind in GOOD
    for name, other in wrong.items():
        monkeypatch.setattr(outcomes, "read_scan", lambda _, other=other: other)
        assert outcome_of(one).kind == "wrong volume", name
    monkeypatch.setattr(outcomes, "read_scan", lambda path: (_ for _ in ()).throw(InputError(f"{path} is no scan.")))
    assert outcome_of(one).kind == "turned away"
    monkeypatch.setattr(outcomes, "read_scan", lambda _: os.write(2, b"itk: nothing") and scan)
    assert outcome_of(one).kind == "noise"


def inputs_of(name: str, folder: Path) -> Iterator[Input]:
    return (make_input(seed, folder) for seed in range(10_000) if format_of(seed) == name)
