"""Runs that end early, go on with another budget, or find their dataset changed; and what a caller's process keeps."""

import json
import logging
import os
import random
import shlex
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.pipeline import TINY, same_weights
from volseg import Segmenter, evaluate, train
from volseg.errors import ConfigError, InputError, UsageError, VolsegError
from volseg.modelfile import read_card
from volseg.networks import NETWORKS
from volseg.training.run.folder import lock_run_folder

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = {"device": "cpu", "overrides": (*TINY, "training.workers=0", "training.validations=0")}


def stop_at(step):
    def stop(stage, done, text):
        if text.startswith(f"step {step},"):
            os.kill(os.getpid(), 2)

    return stop


@pytest.fixture(scope="module")
def begun(phantoms, tmp_path_factory):
    """A run of 8 steps that was stopped after its third."""
    run = tmp_path_factory.mktemp("begun") / "run"
    with pytest.raises(KeyboardInterrupt, match=r"With --finish instead of --resume.* --resume$"):
        train(phantoms, run, steps=8, progress=stop_at(3), **SETTINGS)
    return run


@pytest.fixture
def run(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "run")


def steps_of(run):
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_finish_ends_a_run_with_what_it_has_reached_and_resume_goes_on(phantoms, run, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    # Lines of steps that the checkpoint does not have, as of a run that was killed; and no cache is needed.
    with open(run / "metrics.jsonl", "a") as lines:
        lines.write((run / "metrics.jsonl").read_text().splitlines()[-1].replace('"step": 3', '"step": 4') + "\n")
    shutil.rmtree(run / "cache")
    checkpoint = (run / "checkpoint" / "state.safetensors").read_bytes()
    train(phantoms, run, finish=True, device="cpu")
    assert steps_of(run) == [1, 2, 3]
    assert (run / "checkpoint" / "state.safetensors").read_bytes() == checkpoint
    card = read_card(run / "model.safetensors")
    assert (card.training["steps"], card.training["finished"]) == (3, "early, after step 3 of 8")
    assert card.scores["cases"] == 1
    assert (run / "report.html").exists()
    assert "Finishing after step 3 of 8" in caplog.text
    # It may still go on, to the same end as without.
    train(phantoms, run, resume=True, device="cpu")
    whole = train(phantoms, tmp_path / "whole", steps=8, **SETTINGS)
    assert same_weights(run / "model.safetensors", whole / "model.safetensors")
    assert "finished" not in read_card(run / "model.safetensors").training
    caplog.clear()
    train(phantoms, run, finish=True, device="cpu")
    assert "has spent its budget (step 8 of 8)" in caplog.text
    assert same_weights(run / "model.safetensors", whole / "model.safetensors")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 9}, "leave out --steps"),
        ({"minutes": 9}, "leave out --minutes"),
        ({"overwrite": True}, "leave out --overwrite"),
        ({"overrides": TINY, "config": "c.yaml"}, "leave out --config, --set"),
        ({"seed": 4}, "started with seed 0, found 4"),
    ],
)
def test_finish_takes_no_option_that_says_how_to_train(phantoms, run, options, words):
    before = (run / "settings.yaml").read_bytes()
    with pytest.raises(UsageError, match=words):
        train(phantoms, run, finish=True, device="cpu", **options)
    assert (run / "settings.yaml").read_bytes() == before


def test_what_cannot_be_finished_is_one_sentence(phantoms, run, tmp_path):
    with pytest.raises(UsageError, match=r"There is no run in .* to finish"):
        train(phantoms, tmp_path / "none", finish=True)
    assert not (tmp_path / "none").exists()
    with lock_run_folder(run), pytest.raises(UsageError, match=r"Another process .* Stop that one with Ctrl-C"):
        train(phantoms, run, finish=True)
    shutil.rmtree(run / "checkpoint")
    with pytest.raises(UsageError, match="has no checkpoint yet, so there is nothing to finish"):
        train(phantoms, run, finish=True)


def test_a_new_budget_beyond_what_is_reached_trains_on_and_below_is_refused(phantoms, run, caplog):
    caplog.set_level(logging.INFO)
    before = (run / "settings.yaml").read_bytes()
    for budget, words in (({"steps": 2}, "already finished 3 steps"), ({"minutes": 1e-6}, "already trained for")):
        with pytest.raises(UsageError, match=f"{words}.*--finish"):
            train(phantoms, run, resume=True, device="cpu", **budget)
    assert (run / "settings.yaml").read_bytes() == before
    train(phantoms, run, resume=True, steps=4, device="cpu")
    assert "Resuming after step 3 of 4" in caplog.text
    assert steps_of(run) == [1, 2, 3, 4]
    caplog.clear()
    # The same call again, as schedulers make it.
    train(phantoms, run, resume=True, steps=4, device="cpu")
    assert "The run has spent its budget (step 4 of 4), so nothing more is trained" in caplog.text
    card = read_card(run / "model.safetensors").training
    assert card["resumed"].startswith("8 steps until step 3, then 4 steps; no command stops there")


def test_minutes_that_are_spent_say_so(phantoms, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run = train(phantoms, tmp_path / "run", minutes=1e-4, **SETTINGS)
    train(phantoms, run, resume=True, minutes=1e-4, device="cpu")
    assert "has spent its budget (step " in caplog.text


def test_the_commands_of_a_card_make_the_same_model(phantoms, tmp_path):
    run = train(phantoms, tmp_path / "run", steps=3, **SETTINGS)
    train(phantoms, run, steps=5, resume=True, device="cpu")
    training = read_card(run / "model.safetensors").training
    assert training["resumed"] == "3 steps until step 3, then 5 steps"
    for command in training["command"].split(" && "):
        words = shlex.split(command)
        assert words[:5] == ["volseg", "train", training["dataset"], "--output", "RUN"]
        options = dict(zip(words[5::2], words[6::2], strict=True)) if "--resume" not in words else None
        steps = int(words[words.index("--steps") + 1])
        if options is None:
            train(phantoms, tmp_path / "again", steps=steps, resume=True, device="cpu")
        else:
            train(phantoms, tmp_path / "again", steps=steps, **SETTINGS)
    assert same_weights(tmp_path / "again" / "model.safetensors", run / "model.safetensors")


def move_label(data, name):
    path = next(path for path in (data / "labelsTr").iterdir() if path.name.startswith(name))
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.roll(np.asarray(image.dataobj), 1, axis=0), None, image.header), path)


@pytest.mark.parametrize("half", ["train", "val"])
def test_a_case_that_changed_since_a_run_began_is_named(phantoms, run, tmp_path, half):
    data = shutil.copytree(phantoms, tmp_path / "data")
    name = json.loads((run / "splits.json").read_text())[0][half][0]
    move_label(data, name)
    with pytest.raises(InputError, match=f"have changed: {name}"):
        train(data, run, resume=True, device="cpu")
    if half == "val":
        with pytest.raises(InputError, match=f"have changed: {name}"):
            train(data, run, finish=True, device="cpu")
        (run / "cases.json").unlink()
        assert (train(data, run, finish=True, device="cpu") / "validation.json").exists()


@pytest.mark.parametrize("half", ["train", "val"])
def test_a_case_that_changes_while_a_run_trains_is_named(phantoms, tmp_path, half, caplog):
    data, run = shutil.copytree(phantoms, tmp_path / "data"), tmp_path / "run"
    names = []

    def change(stage, done, text):
        if text.startswith("step 2,"):
            names.append(json.loads((run / "splits.json").read_text())[0][half][0])
            move_label(data, names[0])

    call = {"steps": 3, "progress": change, **SETTINGS}
    if half == "train":
        train(data, run, **call)
        assert f"The dataset has changed while the run trained: {names[0]}." in caplog.text
    else:
        with pytest.raises(InputError, match="the cases that it is scored on have changed: phantom_"):
            train(data, run, **call)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"overrides": "a=b"}, ConfigError, "expected a list of texts"),
        ({"overrides": {"a": 1}}, ConfigError, "expected a list of texts"),
        ({"overrides": [3]}, ConfigError, "expected a list of texts"),
        ({"config": {"training": {}}}, ConfigError, "is a dict, expected the path of a YAML file"),
        ({"loss": "dice"}, UsageError, "loss has to be a function, found str"),
        ({"loss": torch.nn.MSELoss}, UsageError, r"give an object of it: MSELoss\(\)"),
        ({"transforms": 3}, UsageError, "transforms has to be a function, found int"),
        ({"callbacks": [3]}, UsageError, "callbacks has to be a function, found int"),
        ({"device": None}, UsageError, "Unknown device 'None'"),
    ],
)
def test_arguments_of_another_type_are_one_sentence(phantoms, tmp_path, options, error, words):
    with pytest.raises(error, match=words):
        train(phantoms, tmp_path / "run", steps=1, **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', expected a whole number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0, expected at least 1"),
        ({"WORLD_SIZE": "2"}, "MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "x", "RANK": ""}, "RANK is not set"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "x", "RANK": "a"}, "RANK is 'a'"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "x", "RANK": "2"}, "RANK is 2, but WORLD_SIZE is 2"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "x", "RANK": "0", "LOCAL_RANK": "-1"}, "LOCAL_RANK is '-1'"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "x", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "x"}, "MASTER_PORT"),
    ],
)
def test_half_set_variables_of_torchrun_are_one_sentence(phantoms, tmp_path, monkeypatch, variables, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=words):
        train(phantoms, tmp_path / "run", steps=1, **SETTINGS)


def process_state():
    package = logging.getLogger("volseg")
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [str(part) for part in np.random.get_state()],  # noqa: NPY002 - the global one
        "python": random.getstate(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "precision": (torch.get_float32_matmul_precision(), torch.get_default_dtype(), torch.is_grad_enabled()),
        "logging": (package.level, tuple(package.handlers), logging.getLogger().level),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
    }


class Own(torch.nn.Module):
    """A network that draws its weights when it is made, and has a mask of booleans."""

    def __init__(self, config):
        super().__init__()
        self.layer = torch.nn.Conv3d(config.in_channels, config.classes, 3, padding=1)
        self.register_buffer("mask", torch.ones(2, dtype=torch.bool))

    def forward(self, image):
        return self.layer(image)


def test_the_process_of_the_caller_is_as_before(phantoms, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "")
    monkeypatch.setitem(NETWORKS, "own", Own)
    logging.getLogger("volseg").setLevel(logging.NOTSET)
    torch.manual_seed(123)
    before = process_state()
    overrides = (*SETTINGS["overrides"], "plan.architecture=own")
    run = train(phantoms, tmp_path / "run", steps=2, device="cpu", overrides=overrides)
    with pytest.raises(VolsegError):
        train(phantoms, tmp_path / "run", steps=2, device="cpu")
    with pytest.raises(ZeroDivisionError):
        train(phantoms, tmp_path / "other", steps=2, progress=lambda *_: 1 / 0, **SETTINGS)
    Segmenter.load(run / "model.safetensors", device="cpu")(next((phantoms / "imagesTs").iterdir()))
    evaluate(run / "validation", phantoms / "labelsTr")
    after = process_state()
    assert {key for key in before if before[key] != after[key]} == set()


def test_a_network_of_ones_own_that_is_not_registered_is_not_called_damaged(phantoms, tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "own", Own)
    overrides = (*SETTINGS["overrides"], "plan.architecture=own")
    model = train(phantoms, tmp_path / "run", steps=1, device="cpu", overrides=overrides) / "model.safetensors"
    monkeypatch.delitem(NETWORKS, "own")
    with pytest.raises(ConfigError, match=r"The network of .*model.safetensors is 'own', .* Register it"):
        Segmenter.load(model, device="cpu")
    monkeypatch.setitem(NETWORKS, "own", lambda config: torch.nn.Conv3d(1, config.classes, 1))
    with pytest.raises(InputError, match="are of another network than the one registered as 'own'"):
        Segmenter.load(model, device="cpu")
