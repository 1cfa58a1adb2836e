"""The settings of a run, and what happens to its folder."""

import errno
import shlex
import shutil
from itertools import pairwise

import numpy as np
import pytest
import yaml

from volseg.config import Config, load_config
from volseg.data.cases.dataset import Dataset
from volseg.data.cases.labels import LabelSet
from volseg.errors import ConfigError, ResourceError, UsageError
from volseg.training.run.folder import (
    CHECKPOINT,
    CONTENT,
    LOCK,
    MARK,
    configure_run,
    is_run,
    lock_run_folder,
    remove_scores,
    run_folds,
    start_run,
)
from volseg.training.run.settings import RunSettings

SETTINGS = {"fold": 2, "folds": 4, "seed": 7, "minutes": 3.5}


def configured(run, given=(), settings=None, resume=False, overwrite=False, config=None):
    nothing = dict.fromkeys(("fold", "folds", "seed", "minutes", "steps"))
    return configure_run(run, config, given, nothing | (settings or {}), resume, overwrite)


def test_the_command_trains_the_same_again():
    config = load_config(None, ["training.ema_fraction=0.5", "training.loss=dice", "plan.patch_size=[8, 16, 16]"])
    words = shlex.split(RunSettings(**SETTINGS).command("my data", config))
    assert words == [
        "volseg", "train", "my data", "--output", "RUN", "--fold", "2", "--folds", "4", "--seed", "7", "--minutes",
        "3.5", "--set", "plan.patch_size=[8, 16, 16]", "--set", "training.loss=dice", "--set",
        "training.ema_fraction=0.5",
    ]  # fmt: skip
    overrides = [after for before, after in pairwise(words) if before == "--set"]
    assert load_config(None, overrides) == config


def test_settings_come_from_the_call_and_the_configuration_from_its_file(tmp_path):
    (tmp_path / "c.yaml").write_text("training:\n  loss: ce\n")
    settings, config = configured(
        tmp_path / "run", ["training.warmup=0.5"], SETTINGS, config=tmp_path / "c.yaml", overwrite=True
    )
    assert settings == RunSettings(**SETTINGS)
    assert config == load_config(tmp_path / "c.yaml", ["training.warmup=0.5"])
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="The call is invalid: 'folds'"):
        configured(tmp_path / "run", settings={"folds": 1})


@pytest.mark.parametrize(
    ("key", "given", "meant"),
    [
        ("fold", "0", 0),
        ("fold", np.int64(3), 3),
        ("fold", "ALL", "all"),
        ("folds", np.uint8(4), 4),
        ("folds", "4", 4),
        ("seed", np.int32(7), 7),
        ("seed", 7.0, 7),
        ("minutes", np.float32(2.5), 2.5),
        ("minutes", "20", 20.0),
        ("minutes", 3, 3.0),
        ("steps", np.int64(9), 9),
        ("steps", "9", 9),
    ],
)
def test_numbers_of_other_types_are_what_they_mean(tmp_path, key, given, meant):
    run = tmp_path / "run"
    settings, config = configured(run, settings={key: given})
    found = getattr(settings, key)
    assert (found, type(found)) == (meant, type(meant))
    # Also of a run that was started with the same number in another type.
    run.mkdir()
    start_run(run, settings, config)
    assert configured(run, settings={key: given}, resume=True)[0] == settings


@pytest.mark.parametrize("key", ["fold", "folds", "seed", "minutes", "steps"])
@pytest.mark.parametrize(
    "given",
    [True, np.bool_(False), "x", "", -1, 0.5j, np.float64("nan"), float("inf"), [1], {}, np.array([1, 2])],
    ids=str,
)
def test_what_is_no_number_is_refused_in_a_sentence(tmp_path, key, given):
    with pytest.raises(ConfigError, match=f"The call is invalid: '{key}': .*, found .*"):
        configured(tmp_path / "run", settings={key: given})


@pytest.mark.parametrize(("key", "given"), [("fold", 1.0), ("folds", 2.5), ("seed", 0.1), ("steps", np.float32(1.5))])
def test_a_fraction_is_no_count(tmp_path, key, given):
    with pytest.raises(ConfigError, match=f"The call is invalid: '{key}': "):
        configured(tmp_path / "run", settings={key: given})


def test_the_file_of_the_folds_is_in_the_settings_and_the_command_of_a_run_that_has_one(tmp_path):
    run = tmp_path / "run"
    settings, config = configured(run, settings={"splits": "mine.json", "steps": 3})
    assert "--folds 5 --splits mine.json --seed 0" in settings.command("data", config)
    run.mkdir()
    start_run(run, settings, config)
    assert (
        configured(run, resume=True)[0] == configured(run, settings={"splits": "mine.json"}, resume=True)[0] == settings
    )
    with pytest.raises(UsageError, match=r"started with splits mine.json, found other.json"):
        configured(run, settings={"splits": "other.json"}, resume=True)
    start_run(run, RunSettings(), config)
    assert "splits" not in (run / MARK).read_text()
    assert "--splits" not in RunSettings().command("data", config)
    with pytest.raises(UsageError, match=r"started with splits None, found other.json"):
        configured(run, settings={"splits": "other.json"}, resume=True)
    # Its plan was not written yet when it ended, so its folds are not known.
    with pytest.raises(UsageError, match=r"started with --splits mine.json, and then ended. Give it again"):
        run_folds(None, settings, Dataset("data", tmp_path, ("image",), LabelSet({"organ": 1}), ()))


def test_a_folder_is_made_with_its_parents_and_locked(tmp_path):
    run = tmp_path / "new" / "deep"
    with lock_run_folder(run):
        assert [path.name for path in run.iterdir()] == [LOCK]
    with lock_run_folder(run):
        pass
    # The lock alone makes no run.
    assert not is_run(run)
    assert configured(run)[0] == RunSettings()


def test_a_started_run_has_settings_and_configuration_and_nothing_of_an_earlier_one(tmp_path):
    run = tmp_path / "run"
    for name in CONTENT:
        path = run / name.replace("*", "x").replace("?", "x")
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in ("cache", "validation", CHECKPOINT):
            (path / "inside").mkdir(parents=True)
        else:
            path.write_text("old")
    (run / "mine.txt").write_text("mine")
    config = load_config(None, ["training.loss=ce"])
    start_run(run, RunSettings(**SETTINGS), config)
    assert {path.name for path in run.iterdir()} == {"config.yaml", MARK, "mine.txt"}
    assert load_config(run / "config.yaml") == config
    stored = (run / MARK).read_text()
    assert yaml.safe_load(stored) == RunSettings(**SETTINGS).model_dump(exclude={"earlier"})
    assert [line.partition(":")[0] for line in stored.splitlines()] == ["fold", "folds", "seed", "minutes", "steps"]
    assert is_run(run)


def test_a_resumed_run_keeps_its_settings_and_may_have_a_new_budget(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    config = load_config(None, ["training.loss=ce"])
    start_run(run, RunSettings(**SETTINGS), config)
    before = (run / MARK).read_text()
    assert configured(run, resume=True) == (RunSettings(**SETTINGS), config)
    assert configured(run, ["training.loss=ce"], {"fold": 2, "seed": 7}, resume=True)[0] == RunSettings(**SETTINGS)
    assert (run / MARK).read_text() == before
    settings, _ = configured(run, settings={"steps": 9}, resume=True)
    assert settings == RunSettings(fold=2, folds=4, seed=7, steps=9)
    assert configured(run, resume=True)[0] == settings
    stored = [line.partition(":")[0] for line in (run / MARK).read_text().splitlines()]
    assert stored == ["fold", "folds", "seed", "minutes", "steps"]
    for name, value in (("fold", 1), ("folds", 5), ("seed", 8)):
        with pytest.raises(UsageError, match=f"started with {name} .*, found {value}. Leave it out"):
            configured(run, settings={name: value}, resume=True)
    with pytest.raises(UsageError, match="A resumed run keeps its configuration"):
        configured(run, ["training.loss=dice"], resume=True)


@pytest.mark.parametrize(
    ("names", "options", "words"),
    [
        (["config.yaml"], {}, "already exists"),
        (["config.yaml"], {"overwrite": True}, None),
        (["config.yaml"], {"resume": True}, None),
        ([".ab12cd34.tmp.plan.yaml"], {}, None),
        (["config.yaml", MARK], {"overwrite": True}, None),
        (["config.yaml", "plan.yaml"], {"overwrite": True}, "is not a run folder"),
        (["config.yaml", "plan.yaml"], {"resume": True}, "already exists"),
        (["config.yaml", MARK, "b.txt", "a.txt"], {"overwrite": True}, r"do not belong to a run \(a.txt, b.txt\)"),
    ],
)
def test_only_a_run_or_an_empty_folder_becomes_a_run(tmp_path, names, options, words):
    for name in names:
        (tmp_path / name).write_text("{}")
    if words is None:
        assert configured(tmp_path, **options) == (RunSettings(), Config())
    else:
        with pytest.raises(UsageError, match=words):
            configured(tmp_path, **options)


def test_two_budgets_or_two_ways_are_one_too_many(tmp_path):
    with pytest.raises(UsageError, match="Both minutes and steps"):
        configured(tmp_path, settings={"minutes": 1.0, "steps": 1})
    with pytest.raises(UsageError, match="Both resume and overwrite"):
        configured(tmp_path, resume=True, overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        configured(tmp_path / "file")


def test_scores_are_removed_and_nothing_else(tmp_path):
    for name in ("validation.json", "validation.csv", "report.html", "model.safetensors", "metrics.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "validation").mkdir()
    remove_scores(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "metrics.jsonl"}


def test_a_folder_that_cannot_be_removed_is_named(tmp_path, monkeypatch):
    """On a disk whose folders cannot be closed, the library raises an error without a name."""

    def fails(_path):
        raise OSError(errno.EBADF, "Bad file descriptor")

    (tmp_path / "validation").mkdir()
    monkeypatch.setattr(shutil, "rmtree", fails)
    with pytest.raises(ResourceError, match=r"validation could not be removed: Bad file descriptor"):
        remove_scores(tmp_path)
