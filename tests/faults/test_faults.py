"""A sample of the trials of benchmarks/faults.py: the last call of each kind fails, and kills where files move."""

import errno

import pytest

from tests.faults.client import Fault
from tests.faults.scenes import SCENES, Stage
from tests.faults.trials import run_trial


def sample(stage, every):
    """The last call of some kinds that fails, and one in `every` of the calls at which files move, with a kill."""
    last = {call.name: number for number, call in enumerate(stage.undisturbed.calls, 1)}
    moves = [number for number, call in enumerate(stage.undisturbed.calls, 1) if call.name == "rename"]
    yield Fault("fail", last["rename"], errno.EIO)
    yield Fault("fail", last["write"], errno.ENOSPC)
    yield Fault("sticky", last["open+"], errno.ENOSPC)
    yield Fault("torn", last["write"])
    for number in moves[::every]:
        yield Fault("kill", number)


@pytest.mark.parametrize(("name", "every"), [("predict --overwrite", 6), ("evaluate again", 3), ("convert", 3)])
def test_results_are_old_or_new_and_the_next_command_goes_on(server, tmp_path, name, every):
    stage = Stage(SCENES[name], tmp_path, server)
    trials = [run_trial(stage, fault) for fault in sample(stage, every)]
    assert len(trials) > 4
    assert all(trial.call is not None for trial in trials)
    assert [str(trial) for trial in trials if trial.problems] == []


def test_no_scene_is_without_calls(server, tmp_path):
    stage = Stage(SCENES["plan"], tmp_path, server)
    names = {call.name for call in stage.undisturbed.calls}
    assert names >= {"open+", "write", "fsync", "rename", "close"}
