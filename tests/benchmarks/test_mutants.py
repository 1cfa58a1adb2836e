"""The mutants of the benchmarks: drawn by a seed, of every kind, and imported in place of a module's file."""

import ast
import json
import os
import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def make():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield import_module("mutants.make")


def test_a_seed_draws_mutants_of_all_kinds_that_are_python(make):
    mutants = make.draw(40, 3, ("volseg/files.py",))
    assert mutants == make.draw(40, 3, ("volseg/files.py",))
    # By chance a few are the same.
    assert len(set(mutants) - set(make.draw(40, 4))) > 30
    assert set(Counter(one.kind for one in mutants).values()) == {4}
    assert {one.kind for one in mutants} == set(make.KINDS)
    assert not [one for one in mutants if one.file == "volseg/files.py"]
    for one in mutants:
        text = (make.ROOT / one.file).read_text(encoding="utf-8")
        assert ast.dump(ast.parse(one.source())) != ast.dump(ast.parse(text)), one
        assert text.count("\n", 0, one.start) + 1 == one.line


def test_processes_import_the_mutant_and_the_disk_keeps_the_module(tmp_path):
    file = BENCHMARKS.parent / "volseg" / "version.py"
    before = file.read_bytes()
    (tmp_path / "mutant.py").write_text('__version__ = "a mutant"\n')
    described = json.dumps({"file": str(file), "source": str(tmp_path / "mutant.py")})
    hook = os.pathsep.join([str(BENCHMARKS / "mutants" / "hook"), str(BENCHMARKS.parent)])
    command = [sys.executable, "-c", "import volseg, volseg.text; print(volseg.__version__)"]
    for variables, version in (({"VOLSEG_MUTANT": described}, "a mutant"), ({}, None)):
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": hook, **variables}, capture_output=True, text=True, check=True
        )
        assert (done.stdout.strip() == "a mutant") == (version is not None)
    assert file.read_bytes() == before
