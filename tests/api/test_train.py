"""Training end to end on phantoms: the run folder, exact resumption after a kill, and rejected calls."""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest

from tests.pipeline import TINY, environment, leftovers, same_weights, volseg
from volseg import Segmenter, evaluate, train
from volseg.api.describe import describe
from volseg.config import load_config
from volseg.data.cases.phantom import write_phantoms
from volseg.errors import ConfigError, InputError, UsageError
from volseg.modelfile import read_card
from volseg.planning.planner import read_plan
from volseg.training.run.folder import SCORES

pytestmark = pytest.mark.usefixtures("one_thread")
SET = [argument for override in TINY for argument in ("--set", override)]


@pytest.fixture(scope="module")
def run(phantoms, tmp_path_factory):
    """A finished run of 12 steps on fold 0 of 5."""
    return train(phantoms, tmp_path_factory.mktemp("runs") / "run", steps=12, overrides=TINY, device="cpu")


def test_the_run_folder_holds_all_documented_files(run):
    expected = {
        "plan.yaml", "config.yaml", "splits.json", "metrics.jsonl", "checkpoint", "model.safetensors",
        "validation.json", "validation.csv", "report.html", "log.txt",
    }  # fmt: skip
    assert expected <= {path.name for path in run.iterdir()}
    assert list(run.glob("events.out.tfevents.*"))
    assert not leftovers(run)
    assert read_plan(run / "plan.yaml").patch_size == (16, 16, 16)
    assert load_config(run / "config.yaml") == load_config(None, TINY)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in metrics] == list(range(1, 13))
    assert [record["step"] for record in metrics if "foreground_dice" in record] == [6]
    assert len(json.loads((run / "splits.json").read_text())) == 5


@pytest.mark.parametrize(
    ("override", "changes"),
    [
        ("training.progressive_patch_size=0.9", False),
        ("training.progressive_patch_size=0", True),
        ("augmentation.warmup_epochs=100", False),
        ("augmentation.warmup_epochs=0", True),
    ],
)
def test_progressive_patch_size_and_augmentation_warmup_are_on_by_default(run, phantoms, tmp_path, override, changes):
    def first_loss(run):
        return json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["loss"]

    # Every augmented patch differs from the plain one.
    surely = [f"augmentation.{name}=1" for name in ("noise", "blur", "gamma")] if "warmup" in override else []
    other = train(phantoms, tmp_path / "run", steps=1, overrides=(*TINY, *surely, override), device="cpu")
    assert (first_loss(other) != first_loss(run)) == changes


def test_validation_equals_evaluate_on_the_written_files(run, phantoms):
    stored = json.loads((run / "validation.json").read_text())
    again = evaluate(run / "validation", phantoms / "labelsTr", phantoms / "dataset.json")
    assert again["mean"] == stored["mean"]
    assert again["cases"] == stored["cases"]
    assert read_card(run / "model.safetensors").scores["foreground_dice"] == stored["mean"]["foreground_dice"]


def test_the_model_file_segments_without_its_run(run, phantoms, tmp_path):
    model = tmp_path / "alone.safetensors"
    model.write_bytes((run / "model.safetensors").read_bytes())
    result = Segmenter.load(model, device="cpu")(next((phantoms / "imagesTs").iterdir()))
    assert list(result.volumes_ml) == ["ball", "rod"]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(phantoms, run, tmp_path):
    again = train(phantoms, tmp_path / "again", steps=12, overrides=[*TINY, "training.workers=0"], device="cpu")
    assert same_weights(run / "model.safetensors", again / "model.safetensors")
    other = train(phantoms, tmp_path / "other", steps=12, overrides=TINY, seed=1, device="cpu")
    assert not same_weights(run / "model.safetensors", other / "model.safetensors")


def test_folds_share_the_cache_in_volseg_cache(phantoms, run, tmp_path, monkeypatch):
    shared = tmp_path / "shared"
    monkeypatch.setenv("VOLSEG_CACHE", str(shared))
    again, other = (
        train(phantoms, tmp_path / f"fold{fold}", fold=fold, steps=12, overrides=TINY, device="cpu") for fold in (0, 1)
    )
    assert same_weights(run / "model.safetensors", again / "model.safetensors")
    assert (other / "plan.yaml").read_text() == (run / "plan.yaml").read_text()
    assert not (again / "cache").exists()
    assert not (other / "cache").exists()
    # Five cases, each with four files of preprocessing and one for the fingerprint, once for both runs.
    assert len(list(shared.iterdir())) == 5 * 5


def test_runs_killed_at_random_moments_resume_to_the_same_weights(phantoms, tmp_path):
    arguments = [
        "train",
        phantoms,
        "--steps",
        "60",
        "--device",
        "cpu",
        *SET,
        "--set",
        "training.checkpoint_seconds=0.05",
    ]
    whole = volseg(*arguments, "--output", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    killed, moments = tmp_path / "killed", random.Random(7)
    command = [sys.executable, "-m", "volseg", *map(str, arguments[:6]), "--output", str(killed), "--resume"]
    settings = [*SET, "--set", "training.checkpoint_seconds=0.05"]
    kills = 0
    for _ in range(4):
        started = (killed / "settings.yaml").exists()
        process = subprocess.Popen(
            command + ([] if started else settings), stderr=subprocess.DEVNULL, env=environment()
        )
        # Kill it between its first checkpoint and its end, so that each kill interrupts the training loop.
        state, before = killed / "checkpoint" / "state.safetensors", time.monotonic()
        stamp = state.stat().st_mtime_ns if state.exists() else 0
        while process.poll() is None and time.monotonic() - before < 60:
            if state.exists() and state.stat().st_mtime_ns != stamp:
                break
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.5))
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills > 0, "the run finished before it could be killed"
    last = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert last.returncode == 0, last.stderr
    assert same_weights(tmp_path / "whole" / "model.safetensors", killed / "model.safetensors")
    steps = [json.loads(line)["step"] for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 61))


def test_ctrl_c_ends_a_run_without_a_traceback_and_prints_the_command_to_resume(phantoms, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "volseg", "train", str(phantoms), "--output", str(run), "--steps", "100000", *SET]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n") > 2:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert f"volseg train {phantoms} --output {run} --resume" in errors.replace("\n", " ")
    assert (run / "checkpoint" / "state.safetensors").exists()
    assert not leftovers(run)


def test_resuming_a_finished_run_does_not_change_it(run, phantoms):
    before = (run / "model.safetensors").read_bytes()
    train(phantoms, run, resume=True, device="cpu")
    assert (run / "model.safetensors").read_bytes() == before


def test_fold_all_trains_on_every_case_and_validates_on_none(phantoms, tmp_path):
    run = train(phantoms, tmp_path / "run", fold="all", steps=2, overrides=TINY, device="cpu")
    assert not (run / "validation.json").exists()
    card = read_card(run / "model.safetensors")
    training = card.training
    assert card.postprocessing == {}
    assert training["cases"] == 5
    words = shlex.split(training["command"])
    assert words[:5] == ["volseg", "train", training["dataset"], "--output", "RUN"]
    assert words[words.index("--fold") + 1] == "all"
    assert {word for before, word in pairwise(words) if before == "--set"} == set(TINY)


@pytest.mark.parametrize("block", ["conv3d", "conv2plus1d"])
def test_every_block_trains(phantoms, tmp_path, block):
    run = train(phantoms, tmp_path / "run", steps=3, overrides=[*TINY, f"plan.block={block}"], device="cpu")
    assert read_card(run / "model.safetensors").plan.network.block == block
    assert json.loads((run / "validation.json").read_text())["cases"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"steps": 1, "minutes": 1}, UsageError, "Give one of them"),
        ({"fold": 7, "steps": 1}, UsageError, "no fold 7"),
        ({"steps": 1, "overrides": ["training.lr=1"]}, ConfigError, "unknown key"),
        ({"steps": 1, "device": "cuda:9"}, UsageError, "cuda:9"),
        ({"steps": -1}, ConfigError, "steps"),
        ({"minutes": 0}, ConfigError, "minutes"),
    ],
)
def test_wrong_calls_leave_no_folder(phantoms, tmp_path, options, error, words):
    with pytest.raises(error, match=words):
        train(phantoms, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_bad_data_leaves_no_folder(tmp_path):
    write_phantoms(tmp_path / "data", count=5, seed=1, kind="ct")
    next((tmp_path / "data" / "imagesTr").iterdir()).write_bytes(b"no image")
    with pytest.raises(InputError, match="has 1 problem and cannot be used for training"):
        train(tmp_path / "data", tmp_path / "run", fold="all", steps=1, overrides=TINY)
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_neither_overwritten_nor_continued_with_other_settings(run, phantoms, tmp_path):
    with pytest.raises(UsageError, match="--resume"):
        train(phantoms, run, steps=1)
    with pytest.raises(UsageError, match="started with seed 0, found 5"):
        train(phantoms, run, seed=5, resume=True)
    with pytest.raises(UsageError, match="keeps its configuration"):
        train(phantoms, run, overrides=[*TINY, "plan.batch_size=1"], resume=True)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is not a run"):
        train(phantoms, precious, steps=1, overwrite=True)
    assert (precious / "thesis.txt").read_text() == "years of work"


def test_overwrite_starts_a_new_run(phantoms, tmp_path):
    first = train(phantoms, tmp_path / "run", steps=2, overrides=TINY, device="cpu")
    train(phantoms, first, steps=3, overrides=TINY, device="cpu", overwrite=True)
    assert len((first / "metrics.jsonl").read_text().splitlines()) == 3


def test_overwrite_replaces_runs_only(phantoms, tmp_path):
    other = tmp_path / "other"
    (other / "validation").mkdir(parents=True)
    (other / "validation" / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not a run"):
        train(phantoms, other, steps=1, overwrite=True)
    assert (other / "validation" / "precious.txt").exists()


def test_temporary_files_of_a_killed_run_are_removed(phantoms, tmp_path):
    run = train(phantoms, tmp_path / "run", steps=2, overrides=TINY, device="cpu")
    left = [run / ".ab12cd34.tmp.report.html", run / "checkpoint" / ".ab12cd34.tmp.state.safetensors"]
    for path in left:
        path.write_bytes(b"half")
    train(phantoms, run, resume=True, device="cpu")
    assert not any(path.exists() for path in left)
    left[0].write_bytes(b"half")
    train(phantoms, run, steps=1, overrides=TINY, device="cpu", overwrite=True)
    assert not left[0].exists()


def test_a_resumed_run_needs_the_labels_channels_and_cases_it_was_started_with(phantoms, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(phantoms, data)
    call = {"overrides": TINY, "device": "cpu", "resume": True}
    train(data, run, steps=1, **call)
    index = json.loads((data / "dataset.json").read_text())
    swapped = index | {"labels": index["labels"] | {"1": "rod", "2": "ball"}}
    for changed, words in (
        (swapped, "started with the labels .* has "),
        (index | {"modality": {"0": "other"}}, r"started with the channels .* has \('other',\)"),
        (index | {"labels": index["labels"] | {"7": "ignore"}}, "started with the ignore label None, but .* has 7"),
    ):
        (data / "dataset.json").write_text(json.dumps(changed))
        with pytest.raises(InputError, match=words):
            train(data, run, steps=2, **call)
    (data / "dataset.json").write_text(json.dumps(index))
    for kind in ("imagesTr", "labelsTr"):
        first, second, *_ = sorted((data / kind).iterdir())
        content = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(content)
    with pytest.raises(InputError, match="the training cases have changed: phantom_"):
        train(data, run, steps=2, **call)
    assert all((run / name).exists() for name in SCORES)


def test_a_resumed_run_has_no_scores_until_its_new_model_has(phantoms, tmp_path, monkeypatch):
    run = train(phantoms, tmp_path / "run", steps=1, overrides=TINY, device="cpu")

    def scored() -> bool:
        mean = json.loads((run / "validation.json").read_text())["mean"]
        return 0 <= mean["foreground_dice"] == describe(run)["foreground_dice"]

    assert scored()

    def killed(*_):
        raise SystemExit

    monkeypatch.setattr("volseg.api.training.finish.validate_from_files", killed)
    with pytest.raises(SystemExit):
        train(phantoms, run, steps=2, resume=True, device="cpu")
    monkeypatch.undo()
    assert (describe(run)["step"], describe(run)["foreground_dice"]) == (2, None)
    assert not [path for name in SCORES for path in run.glob(name)]
    train(phantoms, run, resume=True, device="cpu")
    assert scored()


def test_two_processes_do_not_train_in_one_folder(phantoms, tmp_path):
    run = train(phantoms, tmp_path / "run", steps=1, overrides=TINY, device="cpu")
    before = {path: path.read_bytes() for path in run.glob("*.*") if path.is_file()}
    lock = f"from volseg.training.run.folder import *\nwith lock_run_folder(Path({str(run)!r})):\n"
    code = f"{lock}    print(1, flush=True)\n    input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline()
        for way in ("resume", "overwrite"):
            with pytest.raises(UsageError, match=f"Another process is training in {run}"):
                train(phantoms, run, steps=2, overrides=TINY, device="cpu", **{way: True})
        assert {path: path.read_bytes() for path in run.glob("*.*") if path.is_file()} == before
        other.communicate(b"\n")
    train(phantoms, run, steps=2, device="cpu", resume=True)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_run_that_was_killed_while_it_was_replaced_can_be_replaced(phantoms, tmp_path, monkeypatch):
    run = train(phantoms, tmp_path / "run", steps=1, overrides=TINY, device="cpu")

    def killed(*_):
        raise SystemExit

    anew = {"steps": 1, "overrides": TINY, "device": "cpu", "overwrite": True}
    for place in ("shutil.rmtree", "write_text"):
        monkeypatch.setattr(f"volseg.training.run.folder.{place}", killed)
        with pytest.raises(SystemExit):
            train(phantoms, run, **anew)
        monkeypatch.undo()
    (run / "config.yaml").write_text("{}")
    assert (train(phantoms, run, **anew) / "validation.json").exists()


def test_a_label_that_occurs_in_no_case_is_a_warning(phantoms, tmp_path, caplog):
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    index = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(index | {"labels": index["labels"] | {"9": "never"}}))
    train(data, tmp_path / "run", steps=1, overrides=TINY, device="cpu")
    assert [message for message in caplog.messages if "in no case" in message] == [
        "Label never occurs in no case, so it cannot be learned"
    ]


def test_the_same_call_with_resume_starts_and_resumes(phantoms, tmp_path):
    call = {"steps": 2, "overrides": TINY, "device": "cpu", "resume": True}
    first = train(phantoms, tmp_path / "run", **call)
    before = (first / "model.safetensors").read_bytes()
    assert (train(phantoms, tmp_path / "run", **call) / "model.safetensors").read_bytes() == before


def test_fewer_cases_than_folds_train_with_fold_all(tmp_path):
    write_phantoms(tmp_path / "data", count=2, seed=1, kind="mr")
    with pytest.raises(InputError, match="--fold all"):
        train(tmp_path / "data", tmp_path / "run", steps=1, overrides=TINY)
    train(tmp_path / "data", tmp_path / "run", fold="all", steps=1, overrides=TINY, device="cpu")


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_process_group_ends_a_run_with_a_checkpoint(phantoms, tmp_path, stop):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "volseg", "train", str(phantoms), "--output", str(run), "--steps", "100000", *SET]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n") > 2:
            break
        time.sleep(0.05)
    os.killpg(process.pid, stop)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert (run / "checkpoint" / "state.safetensors").exists()
