"""Ways out of a run: no process is left, and a resumed run ends as one that nothing disturbed."""

import json
import os
import subprocess
import sys

import pytest

from tests.pipeline import TINY, environment, same_weights
from volseg.data.cases.phantom import write_phantoms

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
# Ending a Python with torch takes seconds of its own.
SECONDS = 15


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a dataset and a shared cache of its cases."""
    folder = tmp_path_factory.mktemp("ends")
    write_phantoms(folder / "data", count=5, seed=3, kind="mr", tests=1)
    return folder


def run_trials(world, method, *trials, shared=True):
    """What `ends_program` reports of each trial, and what it has written to standard error."""
    command = [sys.executable, "-m", "tests.api.ends_program", str(world / "data"), str(world), method, *trials]
    where = {**environment(), "PYTHONPATH": ROOT} | ({"VOLSEG_CACHE": str(world / "cache")} if shared else {})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=where, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_no_way_out_of_a_run_leaves_a_process(world):
    ways = {"error": 1, "exit": 5, "interrupt": 1, "SIGHUP": -1, "SIGKILL": -9}
    trials = {f"{way}@train step 3:{way}": code for way, code in ways.items()} | {"nan@never:nan": 1}
    found, errors = run_trials(world, "fork", *trials)
    assert {trial: one["code"] for trial, one in found.items()} == trials
    for trial, one in found.items():
        assert one["children"] == 2, trial
        assert one["left"] == [], trial
        assert one["seconds"] < SECONDS, trial
    assert "The loss became nan at step 6" in errors


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_that_are_not_forked_end_with_the_run_too(world, method):
    found, _ = run_trials(world, method, f"SIGKILL@train step 3:{method}")
    (killed,) = found.values()
    assert (killed["code"], killed["left"]) == (-9, [])
    assert killed["children"] >= 1


def test_a_run_that_was_ended_at_any_moment_resumes_to_the_same_weights(world):
    moments = ("prepare case 2", "train step 5", "validate phantom")
    disturbed = {f"SIGKILL@{moment}:run{number}": f"run{number}" for number, moment in enumerate(moments)}
    disturbed |= {"SIGINT@train step 1,:stopped": "stopped", "SIGINT2@prepare validation:twice": "twice"}
    resumed = [f"resume:{run}" for run in disturbed.values()]
    found, _ = run_trials(world, "fork", "resume:whole", *disturbed, *resumed, shared=False)
    assert [found[trial]["code"] for trial in ("resume:whole", *resumed)] == [0] * (1 + len(resumed))
    assert all(found[trial]["code"] not in (0, None) for trial in disturbed)
    for run in disturbed.values():
        assert same_weights(world / "whole" / "model.safetensors", world / run / "model.safetensors"), run
        steps = [json.loads(line)["step"] for line in (world / run / "metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(1, 9)), run


UNGUARDED = f"""
import multiprocessing, sys
multiprocessing.set_start_method("spawn")
print("imported", file=sys.stderr)
import volseg
print(volseg.train(sys.argv[1], sys.argv[2], steps=1, device="cpu", overrides={TINY!r}))
"""
DAEMON = f"""
import multiprocessing, sys
def work(folders):
    import volseg
    return str(volseg.train(*folders, steps=1, device="cpu", overrides={TINY!r}))
if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(1) as pool:
        print(pool.map(work, [sys.argv[1:]])[0])
"""


@pytest.mark.parametrize(
    ("script", "words"), [(UNGUARDED, 'below if __name__ == "__main__":'), (DAEMON, "this process is a daemon")]
)
def test_where_no_children_can_be_started_the_run_does_without(world, tmp_path, script, words):
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, str(tmp_path / "script.py"), str(world / "data"), str(tmp_path / "run")]
    where = {**environment(), "PYTHONPATH": ROOT}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=where, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path / "run")), done.stderr
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "Batches are prepared without child processes: " in log
    assert words in log
    assert done.stderr.count("imported") <= 1
    assert (tmp_path / "run" / "report.html").exists()
