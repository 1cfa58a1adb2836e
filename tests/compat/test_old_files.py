"""Runs, models and configurations that volseg wrote before its large renaming still mean what they meant.

README.md says how the files in fixtures/ were made. Nothing here writes to them.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

import volseg
from tests.compat.make_fixtures import MODEL, RENAMED, SCAN, SETTINGS, SHORT_STEPS, STEPS, TINY
from tests.pipeline import same_weights
from volseg.cli import app

FIXTURES = Path(__file__).parent / "fixtures"
PHANTOMS = Path(__file__).parents[2] / "data_samples" / "phantoms"
FINISHED, STOPPED = FIXTURES / "finished_run", FIXTURES / "stopped_run"
MODELS = {"plain": FINISHED / MODEL, **{path.stem: path for path in sorted((FIXTURES / "models").iterdir())}}
LABELS = np.load(FIXTURES / "labels.npz")
ANSWERS = json.loads((FIXTURES / "answers.json").read_text())
# The share of voxels that another processor may round to another label.
ROUNDED = 1e-4
# The places of what has no public name: the only lines here that a move or a renaming touches.
HOMES = {
    "load_config": "volseg.config",
    "read_plan": "volseg.planning.planner",
    "read_card": "volseg.modelfile",
}


def internal(name: str) -> Any:
    """A function of `HOMES`."""
    return getattr(import_module(HOMES[name]), name)


def load_config(path: Path | None = None, overrides: tuple[str, ...] = ()) -> Any:
    return internal("load_config")(path, overrides)


def info(path: Path) -> dict[str, Any]:
    """What `volseg info` says about a run or a model."""
    result = CliRunner().invoke(app, ["info", str(path), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def leaves(document: Any) -> Iterator[tuple[str, Any]]:
    """The values in a document of mappings and lists, each with the way there."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        if isinstance(value, dict | list | tuple):
            yield from ((f"{key}.{rest}", leaf) for rest, leaf in leaves(value))
        else:
            yield str(key), value


def values(document: Any) -> Counter:
    """The values in a document, whatever their names, and how often each is there."""
    return Counter(repr(value) for _, value in leaves(document))


def card_of(path: Path) -> dict[str, Any]:
    """The document in a model file as it was written."""
    with safe_open(path, "np") as handle:
        return json.loads(handle.metadata()["volseg"])


def steps_of(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", autouse=True)
def shared_cache(tmp_path_factory):
    """The phantoms are preprocessed once for all runs here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOLSEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def resumed(one_thread, tmp_path_factory) -> Path:
    """A copy of the stopped run that went on to its end."""
    copy = shutil.copytree(STOPPED, tmp_path_factory.mktemp("stopped") / "run")
    return volseg.train(PHANTOMS, copy, resume=True, device="cpu")


@pytest.mark.parametrize("name", MODELS)
def test_info_knows_an_old_model(name):
    card, said = card_of(MODELS[name]), info(MODELS[name])
    assert said["what"] == f"model {card['name']}"
    assert said["volseg_version"] == "0.1.0"
    assert all(label["name"] in said["labels"] for label in card["plan"]["labels"])
    scores = card["scores"].get("out_of_fold", card["scores"])
    assert said["foreground_dice"] == scores.get("foreground_dice")


def test_info_says_how_far_old_runs_are():
    finished, stopped = info(FINISHED), info(STOPPED)
    scores = json.loads((FINISHED / "validation.json").read_text())
    assert (finished["step"], finished["foreground_dice"]) == (STEPS, scores["mean"]["foreground_dice"])
    assert finished["model"] == str(FINISHED / MODEL)
    assert (stopped["step"], stopped["foreground_dice"]) == (steps_of(STOPPED)[-1], None)
    assert stopped["model"] != str(STOPPED / MODEL)


@pytest.mark.parametrize("name", MODELS)
def test_an_old_model_says_the_same_of_a_scan(name, one_thread):
    scan = nibabel.load(PHANTOMS / SCAN)
    segmenter = volseg.Segmenter.load(MODELS[name], device="cpu", precision="fp32")
    result = segmenter((np.asarray(scan.dataobj), scan.affine))
    expected, answer = LABELS[name], ANSWERS[name]
    assert result.labels.shape == expected.shape
    assert set(np.unique(expected)) == {0, 1, 2}
    assert np.count_nonzero(result.labels != expected) <= ROUNDED * expected.size
    rounded_ml = ROUNDED * expected.size * abs(np.linalg.det(scan.affine[:3, :3])) / 1000
    assert result.volumes_ml == pytest.approx(answer["volumes_ml"], abs=rounded_ml)
    # Means of MR scans are no longer compared: their intensities have no unit.
    assert list(result.flags) == [flag for flag in answer["flags"] if flag != "scan: intensity_outside_training_range"]


def test_an_old_finished_run_is_done(one_thread, tmp_path, monkeypatch):
    # Its few validation cases would give no component rules today.
    monkeypatch.setattr("volseg.postprocessing.choosing.ENOUGH_CASES", 1)
    monkeypatch.setattr("volseg.postprocessing.choosing.LARGEST_LOSS", 1.0)
    copy = shutil.copytree(FINISHED, tmp_path / "run")
    # Its settings may be said again, with the keys they had.
    volseg.train(PHANTOMS, copy, overrides=SETTINGS, resume=True, device="cpu")
    assert steps_of(copy) == steps_of(FINISHED) == list(range(1, STEPS + 1))
    assert same_weights(copy / MODEL, FINISHED / MODEL)
    old, new = (json.loads((run / "validation.json").read_text())["mean"] for run in (FINISHED, copy))
    assert new["foreground_dice"] == pytest.approx(old["foreground_dice"], abs=1e-3)
    assert load_config(copy / "config.yaml") == load_config(FINISHED / "config.yaml")


def test_an_old_stopped_run_goes_on_to_its_end(resumed):
    assert steps_of(resumed) == list(range(1, SHORT_STEPS + 1))
    assert info(resumed)["step"] == SHORT_STEPS
    assert card_of(resumed / MODEL)["training"]["steps"] == SHORT_STEPS
    assert all(tensor.isfinite().all() for tensor in load_file(resumed / MODEL).values())
    assert (resumed / "validation.json").exists()


def test_a_run_that_goes_on_keeps_its_configuration_and_plan(resumed):
    settings = load_config(None, SETTINGS)
    assert settings != load_config(None, TINY) != load_config()
    for run in (resumed, STOPPED, FINISHED):
        assert load_config(run / "config.yaml") == settings
        assert internal("read_plan")(run / "plan.yaml") == internal("read_plan")(STOPPED / "plan.yaml")


@pytest.mark.parametrize("setting", RENAMED)
def test_a_run_that_goes_on_refuses_another_value_of_a_renamed_key(setting, tmp_path):
    copy = shutil.copytree(STOPPED, tmp_path / "run")
    key, _, _ = setting.partition("=")
    others = [one for one in SETTINGS if one != setting]
    with pytest.raises(volseg.VolsegError, match="configuration"):
        volseg.train(PHANTOMS, copy, overrides=[*others, f"{key}=0.5"], resume=True, device="cpu")
    assert steps_of(copy) == steps_of(STOPPED)


def test_every_old_key_is_read_from_a_file_and_from_the_command_line():
    path = FIXTURES / "every_key.yaml"
    groups = yaml.safe_load(path.read_text())
    overrides = [f"{group}.{key}={value}" for group, keys in groups.items() for key, value in keys.items()]
    config = load_config(path)
    assert config == load_config(None, tuple(overrides))
    assert values(groups) <= values(config.model_dump(mode="json"))


def test_each_old_key_sets_one_value_of_its_own():
    groups = yaml.safe_load((FIXTURES / "every_key.yaml").read_text())
    default, seen = load_config().model_dump(mode="json"), set()
    for group, keys in groups.items():
        for key, value in keys.items():
            changed = load_config(None, (f"{group}.{key}={value}",)).model_dump(mode="json")
            differences = [
                (group, name)
                for group in changed
                for name, one in changed[group].items()
                if one != default[group][name]
            ]
            assert len(differences) == 1, f"{group}.{key} changes {differences}"
            (where,) = differences
            assert changed[where[0]][where[1]] == value
            seen.add(where)
    assert len(seen) == sum(map(len, groups.values()))


@pytest.mark.parametrize("path", ["plan_ct.yaml", "finished_run/plan.yaml", "stopped_run/plan.yaml"])
def test_an_old_plan_is_read_whole(path):
    plan = internal("read_plan")(FIXTURES / path)
    assert values(yaml.safe_load((FIXTURES / path).read_text())) <= values(plan.model_dump(mode="json"))


def test_the_plan_of_an_old_run_is_that_of_its_model():
    assert internal("read_plan")(FINISHED / "plan.yaml") == internal("read_card")(FINISHED / MODEL).plan
