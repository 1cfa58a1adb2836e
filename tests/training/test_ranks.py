"""Two real processes that train together, against a single process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from tests.pipeline import environment, torchrun
from tests.training.ranks_program import tensors, trained
from volseg.errors import OtherProcessError, TrainingError, UsageError
from volseg.training import ranks
from volseg.training.budget import Budget
from volseg.training.ranks import SINGLE_PROCESS, join_process_group, local_device, local_world_size

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder with the results of two processes of ranks_program.py."""
    folder = tmp_path_factory.mktemp("ranks")
    command = torchrun("-m", "tests.training.ranks_program", folder)
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def results(finished) -> list[dict]:
    return [json.loads((finished / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("steps", [1, 6])
def test_both_ranks_have_the_same_weights_ema_and_gradients(finished, steps):
    first, second = (load_file(finished / f"{steps}steps.{rank}.safetensors") for rank in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_gradients_equal_those_of_one_process_with_the_whole_batch(finished):
    alone = tensors(trained(SINGLE_PROCESS, Budget(steps=1))[0])
    shared = load_file(finished / "1steps.0.safetensors")
    # The head of the coarsest stage, which the loss excludes, has no gradient in either.
    assert alone.keys() == shared.keys()
    assert len(alone) < 3 * len([name for name in alone if name.startswith("weight")])
    largest = max(value.abs().max() for name, value in alone.items() if name.startswith("gradient"))
    for name in alone:
        torch.testing.assert_close(shared[name], alone[name], rtol=1e-4, atol=1e-5 * largest.item())


def test_losses_and_weights_after_several_steps_equal_those_of_one_process(finished, results):
    state, records = trained(SINGLE_PROCESS, Budget(steps=6))
    losses = [record["loss"] for record in records]
    assert results[0]["losses"] == results[1]["losses"] == pytest.approx(losses, rel=1e-5)
    alone, shared = tensors(state), load_file(finished / "6steps.0.safetensors")
    for name in alone:
        if not name.startswith("gradient"):
            torch.testing.assert_close(shared[name], alone[name], rtol=1e-3, atol=1e-4)


def test_the_clock_of_the_first_rank_counts_for_all(results):
    assert results[0]["timed"] == results[1]["timed"] > 1
    assert results[0]["rates of the timed run"] == results[1]["rates of the timed run"]


def test_a_stop_request_to_one_rank_stops_all_after_the_same_step(results):
    assert results[0]["stopped"] == results[1]["stopped"] == 4


def test_gathered_values_and_those_of_the_first_rank_reach_all_ranks(results):
    for one in results:
        assert one["gathered"] == {f"case {index}": index for index in range(5)}
        assert one["from first rank"] == "by 0"


def test_a_single_process_starts_no_process_group():
    with join_process_group(torch.device("cpu")) as ranks:
        assert ranks is SINGLE_PROCESS
        assert not torch.distributed.is_initialized()
        value = torch.tensor([1.0, 2.0])
        assert ranks.sum(value) is value
        assert ranks.parallel(torch.nn.Identity()).__class__ is torch.nn.Identity


@pytest.fixture
def third_of_four(monkeypatch):
    """The environment of rank 2 of four, on a machine with eight GPUs."""
    for name, value in {"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)


@pytest.mark.parametrize(("name", "device"), [("auto", "cuda:2"), ("cuda", "cuda:2"), ("cpu", "cpu")])
def test_each_process_gets_its_own_gpu(third_of_four, name, device):
    assert local_device(name) == torch.device(device)


def test_one_gpu_for_several_processes_is_rejected(third_of_four):
    with pytest.raises(UsageError, match=r"cuda:1.*found 4 processes"):
        local_device("cuda:1")


def test_several_processes_without_torchrun_get_the_command_to_start(third_of_four):
    with pytest.raises(UsageError, match=r"MASTER_ADDR is not set.*torchrun"), join_process_group(torch.device("cpu")):
        pass


def test_a_process_with_a_gpu_that_fails_does_not_wait_for_the_others():
    # NCCL's groups are not destroyed, and no exit handler runs after the error was reported.
    code = """
import atexit, torch, torch.distributed
from volseg.errors import InputError
from volseg.training import ranks
atexit.register(print, "too late")
ranks._world_size = lambda: 2
ranks._connect = lambda device: (ranks.SINGLE_PROCESS, torch.distributed.HashStore())
torch.distributed.destroy_process_group = lambda: print("waited")
try:
    with ranks.join_process_group(torch.device("cuda")):
        raise InputError("bad scan")
except InputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (2, "bad scan\n", "")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, 1),
        ({"WORLD_SIZE": "4"}, 4),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "2"}, 2),
        ({"LOCAL_WORLD_SIZE": "2"}, 1),
    ],
)
def test_only_ranks_on_this_machine_share_its_cores(variables, expected, monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert local_world_size() == expected


class Store:
    """Counts the processes that have failed, as the store of the group does; without a count its process has ended."""

    def __init__(self, failed):
        self.failed = failed

    def add(self, name, count):
        assert (name, count) == ("volseg/failed", 1)
        if self.failed is None:
            raise RuntimeError("no store")
        self.failed += count
        return self.failed


def caused_by(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("failed", [0, None])
def test_the_first_process_that_fails_reports_its_own_error(failed):
    for error in (UsageError("mine"), KeyboardInterrupt(), ValueError("plain")):
        assert ranks._error_to_report(error, Store(failed)) is error


@pytest.mark.parametrize(
    ("error", "code"), [(UsageError("mine"), 2), (TrainingError("mine"), 1), (KeyboardInterrupt(), 130), (OSError(), 1)]
)
def test_later_ones_only_end_with_the_code_of_theirs(error, code):
    reported = ranks._error_to_report(error, Store(1))
    assert isinstance(reported, OtherProcessError)
    assert reported.exit_code == code


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (dist.DistError("x"), True),
        (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc] closed"), True),
        (RuntimeError("another"), False),
        (ValueError("gloo"), False),
        (caused_by(ValueError("x"), dist.DistError("y")), True),
        (caused_by(ValueError("x"), KeyError("y")), False),
    ],
)
def test_a_lost_process_is_named(error, lost):
    reported = ranks._error_to_report(error, Store(0))
    assert (reported is error) != lost
    if lost:
        assert isinstance(reported, TrainingError)
        assert "A process of this run was lost" in str(reported)
