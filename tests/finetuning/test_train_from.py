"""`volseg.train(..., from_model=...)` from its call to the model that it leaves."""

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.docs.pages import ROOT
from tests.interop.folders import write_folder
from tests.interop.variants import VARIANTS
from tests.pipeline import TINY, environment, same_weights, tiny_plan, torchrun, write_model
from volseg import train
from volseg.api.describe import describe
from volseg.api.ensemble import ensemble
from volseg.api.importing import import_nnunet
from volseg.api.training import fit as fit_module
from volseg.cli import app
from volseg.config import Label, load_config
from volseg.config.training import FROM_MODEL
from volseg.errors import InputError, Stopped, UsageError, VolsegError
from volseg.files import sha256_of
from volseg.modelfile import bundled_models, read_card, save_model
from volseg.networks import build_network, open_network
from volseg.planning.planner import read_plan

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = {"device": "cpu", "folds": 2, "overrides": ["training.validations=0", "training.workers=0"]}


@pytest.fixture(scope="session")
def source(phantoms, tmp_path_factory):
    """A run on the phantoms that others start from."""
    options = {**QUICK, "overrides": [*TINY, *QUICK["overrides"]]}
    return train(phantoms, tmp_path_factory.mktemp("source") / "run", steps=3, **options)


@pytest.fixture
def first_step(monkeypatch):
    """Trains up to the first step, which it does not take, and gives the state that the loop was called with."""

    def stop(state, *_):
        seen["state"] = state
        return False

    def begin(*arguments, **options):
        with pytest.raises(Stopped):
            train(*arguments, **{**QUICK, **options})
        return seen["state"]

    seen = {}
    monkeypatch.setattr(fit_module, "fit", stop)
    return begin


def same_logits(one, other, channels=1, edge=32):
    """Whether two networks in evaluation mode give the same logits, to the bit."""
    torch.manual_seed(5)
    scan = torch.randn(1, channels, edge, edge, edge)
    with torch.no_grad():
        return torch.equal(one.eval()(scan), other.eval()(scan))


def test_step_0_of_the_same_labels_channels_and_plan_gives_the_models_logits(phantoms, source, first_step, tmp_path):
    state = first_step(phantoms, tmp_path / "run", from_model=source)
    _, model = open_network(source / "model.safetensors")
    assert same_logits(state.network, model)
    assert same_logits(state.ema, model)


@pytest.fixture(scope="session")
def hippocampi(tmp_path_factory):
    """Four noise scans with the labels of the bundled model."""
    folder = tmp_path_factory.mktemp("hippocampi")
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir()
    rng = np.random.default_rng(0)
    for case in "abcd":
        labels = np.zeros((40, 48, 40), np.uint8)
        labels[8:20, 10:20, 10:20], labels[20:32, 10:20, 10:20] = 1, 2
        scan = (100 * rng.random(labels.shape) + 50 * labels).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(scan, np.eye(4)), folder / "imagesTr" / f"{case}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), folder / "labelsTr" / f"{case}.nii.gz")
    labels = {"background": 0, "Anterior": 1, "Posterior": 2}
    document = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 4, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize(("fold", "member"), [(1, 1), ("all", 0)])
def test_step_0_from_the_bundled_ensemble_gives_the_logits_of_the_folds_member(
    fold, member, hippocampi, first_step, tmp_path
):
    state = first_step(hippocampi, tmp_path / "run", from_model="hippocampus", fold=fold)
    _, model = open_network(bundled_models()["hippocampus"])
    assert same_logits(state.network, model.members[member], edge=40)
    assert not same_logits(state.network, model.members[2], edge=40)
    (record,) = [json.loads((tmp_path / "run" / "ancestry.json").read_text())]
    assert (record["name"], record["member"]) == ("hippocampus", member)
    plan, card = read_plan(tmp_path / "run" / "plan.yaml"), read_card(bundled_models()["hippocampus"])
    assert plan.network == card.plan.network
    assert (plan.spacing_mm, plan.patch_size) == (card.plan.spacing_mm, card.plan.patch_size)


def test_info_of_an_ensemble_has_the_ancestry_of_each_member(phantoms, source, tmp_path):
    runs = [train(phantoms, tmp_path / f"run{fold}", from_model=source, fold=fold, steps=1, **QUICK) for fold in (0, 1)]
    joined = ensemble(runs, tmp_path / "joined.safetensors")
    text = describe(joined)["started_from"]
    assert text.count("Phantoms MR-fold0 (sha256") == 2
    assert text.startswith("Phantoms MR-fold0 from Phantoms MR-fold0 (sha256")
    assert "; Phantoms MR-fold1 from Phantoms MR-fold0 (sha256" in text
    # Of a member, its own ancestry counts.
    child = train(phantoms, tmp_path / "child", from_model=joined, fold=1, steps=1, **QUICK)
    mother, grandmother = read_card(child / "model.safetensors").training["from"]
    assert (mother["name"], mother["member"]) == ("Phantoms MR-ensemble2", 1)
    assert grandmother["name"] == "Phantoms MR-fold0"


def test_weights_that_do_not_fit_are_refused_before_a_run_folder_is_made(phantoms, source, tmp_path):
    card = read_card(source / "model.safetensors")
    wider = card.plan.network.model_copy(update={"features": (5, 8)})
    weights = build_network(wider).state_dict()
    save_model(tmp_path / "m.safetensors", card, weights)
    with pytest.raises(InputError, match="do not fit its plan"):
        train(phantoms, tmp_path / "run", from_model=tmp_path / "m.safetensors", **QUICK)
    assert not (tmp_path / "run").exists()


def test_the_page_of_the_configuration_states_the_values_of_runs_that_start_from_a_model():
    page = (ROOT / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    for key, value in (item for group in FROM_MODEL.values() for item in group.items()):
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{key}` |"))
        assert row.endswith(f"With `--from` {value}, unless it is set |")


def test_an_ensemble_of_fewer_members_than_folds_starts_from_its_first(phantoms, source, first_step, tmp_path):
    other = write_model(tmp_path / "other.safetensors", read_card(source / "model.safetensors").plan, seed=4)
    both = ensemble([source, other], tmp_path / "both.safetensors")
    states = [first_step(phantoms, tmp_path / f"run{fold}", from_model=both, fold=fold, folds=4) for fold in (1, 3)]
    assert same_logits(states[0].network, open_network(other)[1])
    assert same_logits(states[1].network, open_network(source / "model.safetensors")[1])


def test_the_card_and_info_have_the_ancestry_and_no_path(phantoms, source, renamed, tmp_path):
    data = renamed(labels={"0": "background", "1": "Ball", "2": "tail"})
    child = train(data, tmp_path / "child", from_model=source, label_map={"Ball": "ball"}, steps=1, **QUICK)
    grandchild = train(phantoms, tmp_path / "grandchild", from_model=child, freeze="encoder", steps=1, **QUICK)
    mother, grandmother = read_card(grandchild / "model.safetensors").training["from"]
    assert mother["sha256"] == sha256_of(child / "model.safetensors")
    assert grandmother["sha256"] == sha256_of(source / "model.safetensors")
    assert mother["labels"] == {"new": ["ball", "rod"], "dropped": ["Ball", "tail"]}
    assert grandmother["labels"] == {"copied": {"Ball": "ball"}, "new": ["tail"], "dropped": ["rod"]}
    assert (
        read_card(child / "model.safetensors")
        .training["command"]
        .endswith(
            "--from run --label-map Ball=ball --set training.learning_rate=0.005 --set training.pull_to_model=5.0 "
            "--set training.warmup=0.1 "
            "--set training.validations=0 --set training.workers=0 --set augmentation.warmup_epochs=0.0"
        )
    )
    assert "--from child --freeze encoder" in read_card(grandchild / "model.safetensors").training["command"]
    text = describe(grandchild / "model.safetensors")["started_from"]
    assert text.startswith(f"Phantoms MR-fold0 (sha256 {mother['sha256']}; labels new ball, rod, labels dropped Ball,")
    assert f"before it Phantoms MR-fold0 (sha256 {grandmother['sha256']}; labels copied Ball" in text
    assert str(tmp_path) not in read_card(grandchild / "model.safetensors").model_dump_json()
    assert describe(grandchild)["started_from"] == text
    assert "started_from" not in describe(source)
    # The table is in the log, the plan and with it the report.
    for name in ("log.txt", "plan.yaml", "report.html"):
        assert "new; the model has" in (grandchild / name).read_text(), name


def test_only_the_decoder_of_a_frozen_encoder_changes(phantoms, source, tmp_path):
    run = train(phantoms, tmp_path / "run", from_model=source, freeze="encoder", steps=2, **QUICK)
    resumed = train(phantoms, run, resume=True, steps=4, **{**QUICK, "folds": None, "overrides": ()})
    old, new = load_file(source / "model.safetensors"), load_file(resumed / "model.safetensors")
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {name for name in old if not name.startswith("encoder.")}


def test_every_patch_is_augmented_from_the_first_step_on_unless_it_is_set():
    assert load_config(None).augmentation.warmup_epochs == 100
    assert load_config(None).from_model().augmentation.warmup_epochs == 0
    assert load_config(None, ["augmentation.warmup_epochs=7"]).from_model().augmentation.warmup_epochs == 7


def test_a_lower_learning_rate_rises_longer_unless_they_are_set(phantoms, source, tmp_path):
    run = train(phantoms, tmp_path / "run", from_model=source, steps=20, **QUICK)
    rates = [json.loads(line)["learning_rate"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rates.index(max(rates)) == 2
    assert max(rates) == pytest.approx(0.005, rel=0.01)
    options = {**QUICK, "overrides": [*QUICK["overrides"], "training.learning_rate=0.02"]}
    run = train(phantoms, tmp_path / "set", from_model=source, steps=20, **options)
    rates = [json.loads(line)["learning_rate"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(rates) == pytest.approx(0.02, rel=0.01)


def test_a_resumed_run_needs_neither_the_option_nor_the_model(phantoms, source, tmp_path):
    moved = shutil.copy(source / "model.safetensors", tmp_path / "moved.safetensors")
    straight = train(phantoms, tmp_path / "straight", from_model=moved, steps=4, **QUICK)
    run = train(phantoms, tmp_path / "run", from_model=moved, steps=2, **QUICK)
    Path(moved).unlink()
    (run / "model.safetensors").unlink()
    # The same command as before, and one without options.
    train(phantoms, run, from_model=moved, resume=True, **QUICK)
    train(phantoms, run, resume=True, steps=4, device="cpu")
    assert read_card(run / "model.safetensors").training["from"] == read_card(
        straight / "model.safetensors"
    ).training["from"]  # fmt: skip


def test_kernels_are_pulled_to_the_model_and_heads_and_norms_are_not(phantoms, source, tmp_path):
    old = load_file(source / "model.safetensors")
    options = {**QUICK, "from_model": source, "steps": 3}
    distances = []
    for pull in (0.0, 5.0, 1e6):
        overrides = [*QUICK["overrides"], "training.learning_rate=0.02", f"training.pull_to_model={pull}"]
        run = train(phantoms, tmp_path / f"run{pull}", **{**options, "overrides": overrides})
        new = load_file(run / "model.safetensors")
        kernels = [name for name in old if old[name].ndim > 1 and not name.startswith("heads.")]
        others = [name for name in old if name not in kernels]
        distances.append(sum(float((new[name] - old[name]).norm()) for name in kernels))
        assert any(not torch.equal(new[name], old[name]) for name in others)
    assert distances[0] > distances[1] > distances[2] == pytest.approx(0, abs=1e-5)


def test_a_run_from_a_model_resumes_to_the_same_weights(phantoms, source, tmp_path, monkeypatch):
    options = {**QUICK, "from_model": source, "steps": 4}
    straight = train(phantoms, tmp_path / "straight", **options)
    # Stopped after two of four steps.
    original = fit_module.fit

    def two_steps(state, batches, budget, config, validate, report, stopped, *others):
        return original(state, batches, budget, config, validate, report, lambda: state.step == 2, *others)

    with monkeypatch.context() as patched:
        patched.setattr(fit_module, "fit", two_steps)
        with pytest.raises(Stopped):
            train(phantoms, tmp_path / "run", **options)
    shutil.copytree(tmp_path / "run" / "checkpoint", tmp_path / "kept")
    train(phantoms, tmp_path / "run", resume=True, device="cpu")
    assert same_weights(straight / "model.safetensors", tmp_path / "run" / "model.safetensors")
    stored = load_file(tmp_path / "kept" / "state.safetensors")
    old = load_file(source / "model.safetensors")
    pulled = {name.removeprefix("start."): value for name, value in stored.items() if name.startswith("start.")}
    assert pulled
    assert all(torch.equal(value, old[name]) for name, value in pulled.items())


def test_another_model_on_resuming_is_refused(phantoms, source, tmp_path):
    run = train(phantoms, tmp_path / "run", from_model=source, steps=1, **QUICK)
    with pytest.raises(UsageError, match=r"^The run was started with from .*run, found hippocampus\. Leave it out"):
        train(phantoms, run, from_model="hippocampus", resume=True, device="cpu")
    with pytest.raises(UsageError, match=r"^The run was started with keep-labels False, found True"):
        train(phantoms, run, keep_labels=True, resume=True, device="cpu")


def test_a_model_that_has_changed_before_the_first_checkpoint_is_refused(phantoms, source, first_step, tmp_path):
    model = Path(shutil.copy(source / "model.safetensors", tmp_path / "m.safetensors"))
    first_step(phantoms, tmp_path / "run", from_model=model)
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    write_model(model, read_card(model).plan, seed=9)
    with pytest.raises(InputError, match="is not the one that the run was started from: its sha256 is"):
        train(phantoms, tmp_path / "run", resume=True, device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": "encoder"}, "--freeze says what to take from a model. Add --from MODEL, or leave it out."),
        ({"keep_labels": True}, "--keep-labels says what to take from a model. Add --from MODEL, or leave it out."),
        ({"label_map": {"a": "b"}}, "--label-map says what to take from a model. Add --from MODEL, or leave it out."),
        ({"from_model": "nowhere"}, "There is no model"),
        ({"from_model": "x", "freeze": "decoder"}, "The call is invalid: 'freeze'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(options, message, phantoms, tmp_path):
    with pytest.raises(VolsegError, match=message):
        train(phantoms, tmp_path / "run", **options, **QUICK)
    assert not (tmp_path / "run").exists()


def test_the_command_line_refuses_a_map_that_is_none(phantoms, tmp_path):
    for given, message in ((["ball"], "is not NEW=OLD"), (["a=b", "a=c"], "names a label of the dataset twice")):
        options = [word for one in given for word in ("--label-map", one)]
        result = CliRunner().invoke(app, ["train", str(phantoms), "--output", str(tmp_path / "run"), *options])
        assert result.exit_code == 2
        assert message in result.stderr


@pytest.mark.parametrize("name", [name for name in VARIANTS if "region" not in name])
def test_every_imported_model_of_plain_labels_can_be_trained_on(name, phantoms, first_step, tmp_path):
    variant = VARIANTS[name]
    model = import_nnunet(write_folder(tmp_path / "nnunet", variant), tmp_path / "m.safetensors")
    card = read_card(model)
    if card.plan.regions:
        pytest.skip("regions")
    run = tmp_path / "run"
    channels = [channel.name for channel in card.plan.channels]
    state = first_step(phantoms, run, from_model=model)
    network = state.network.train()
    outputs = network(torch.randn(2, 1, *card.plan.patch_size))
    levels = len(card.plan.network.features) - 1
    assert len(outputs) == levels
    assert outputs[0].shape == (2, 3, *card.plan.patch_size)
    sum(one.square().mean() for one in outputs).backward()
    # All but the norm-free biases learn.
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert channels


def test_an_imported_model_trains_saves_and_loads_again(phantoms, tmp_path):
    large = replace(VARIANTS["windows"], patch=(32, 32, 32))
    model = import_nnunet(write_folder(tmp_path / "nnunet", large), tmp_path / "m.safetensors")
    run = train(phantoms, tmp_path / "run", from_model=model, steps=2, **QUICK)
    card, network = open_network(run / "model.safetensors")
    assert [label.name for label in card.plan.labels] == ["ball", "rod"]
    assert card.plan.network.features == read_card(model).plan.network.features
    assert not same_weights(run / "model.safetensors", model)
    assert not network.training


def test_regions_start_from_regions(renamed, first_step, tmp_path):
    regions = {"labels": {"background": 0, "whole": [1, 2], "rod": [2]}, "regions_class_order": [1, 2]}
    network = tiny_plan().network.model_copy(update={"classes": 2})
    labels = (Label(name="rod", value=2, parts=(2,)), Label(name="whole", value=1, parts=(1, 2)))
    model = write_model(tmp_path / "m.safetensors", tiny_plan(regions=True, labels=labels, network=network))
    state = first_step(renamed(**regions), tmp_path / "run", from_model=model)
    plan = read_plan(tmp_path / "run" / "plan.yaml")
    assert ([label.name for label in plan.labels], plan.regions) == (["whole", "rod"], True)
    head, old = state.network.heads[0].weight, open_network(model)[1].heads[0].weight
    assert torch.equal(head, old[[1, 0]])


def test_two_processes_start_from_a_model_as_one_does(phantoms, source, tmp_path):
    options = ["--steps", "2", "--folds", "2", "--device", "cpu", "--freeze", "encoder", "--set",
               "training.validations=0", "--set", "training.workers=0", "--set", "training.precision=fp32"]  # fmt: skip
    for name, launcher in (("one", [sys.executable]), ("two", torchrun())):
        command = [
            *launcher,
            "-m",
            "volseg",
            "train",
            phantoms,
            "--output",
            tmp_path / name,
            "--from",
            source,
            *options,
        ]
        done = subprocess.run(
            list(map(str, command)), env=environment(), capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(one[key], two[key], atol=1e-4) for key in one)


def test_the_log_has_the_table(phantoms, source, first_step, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="volseg"):
        first_step(phantoms, tmp_path / "run", from_model=source)
    lines = [record.getMessage() for record in caplog.records]
    at = next(number for number, line in enumerate(lines) if line.startswith("Starting from Phantoms MR-fold0 (sha256"))
    assert lines[at + 1 : at + 4] == ["  label    ball  copied", "  label    rod   copied", "  channel  MRI   copied"]


def test_a_run_without_a_model_cannot_be_started_from(phantoms, first_step, tmp_path):
    first_step(phantoms, tmp_path / "unfinished", overrides=[*TINY])
    with pytest.raises(InputError, match="unfinished has no model yet"):
        train(phantoms, tmp_path / "run", from_model=tmp_path / "unfinished", **QUICK)


def test_a_two_dimensional_model_gives_a_two_dimensional_plan(phantoms, first_step, tmp_path):
    network = tiny_plan().network.model_copy(
        update={"kernels": ((1, 3, 3),) * 2, "strides": ((1, 1, 1), (1, 2, 2))}
    )  # fmt: skip
    plan = tiny_plan(dimensions=2, patch_size=(1, 16, 16), network=network)
    model = write_model(tmp_path / "flat.safetensors", plan)
    state = first_step(phantoms, tmp_path / "run", from_model=model)
    found = read_plan(tmp_path / "run" / "plan.yaml")
    assert (found.dimensions, found.patch_size, found.network) == (2, (1, 16, 16), network)
    assert 0 not in found.mirror_axes
    assert same_logits(state.network, open_network(model)[1])
