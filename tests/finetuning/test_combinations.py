"""Starting from a model together with partial labels, parts of one's own and folders that are replaced."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from tests.pipeline import TINY, tiny_plan, write_model
from volseg import train
from volseg.api.ensemble import ensemble
from volseg.api.training import fit as fit_module
from volseg.config import Label
from volseg.errors import UsageError
from volseg.finetuning.source import Source, open_source
from volseg.modelfile import ModelCard, read_card, save_model
from volseg.networks import UNet

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = {"device": "cpu", "folds": 2, "steps": 2, "overrides": ["training.validations=0", "training.workers=0"]}


def own(plan):
    """A network of the caller's own."""
    return UNet(plan.network)


def confident(path, index):
    """A model of ball, rod and lump that is sure to see one of its classes everywhere."""
    labels = tuple(Label(name=name, value=value) for value, name in enumerate(("ball", "rod", "lump"), 1))
    plan = tiny_plan(labels=labels, network=tiny_plan().network.model_copy(update={"classes": 4}))
    network = UNet(plan.network)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.startswith("heads."):
                value.zero_()
            if name == "heads.0.bias":
                value[index] = 20.0
    return write_model(path, plan, weights=network.state_dict())


def test_labels_are_kept_in_cases_of_which_some_labels_are_annotated(phantoms, renamed, tmp_path, monkeypatch):
    """The kept label is one that the model looked for, so it is no part of the background there."""
    seen = []
    original = fit_module.fit

    def fit(state, batches, *others):
        seen.extend(batches._loader.dataset.dataset.cases)
        return original(state, batches, *others)

    monkeypatch.setattr(fit_module, "fit", fit)
    names = [path.name.removesuffix(".nii.gz") for path in sorted((phantoms / "labelsTr").iterdir())]
    data = renamed(annotated={name: ["rod"] for name in names[:-1]})
    (data / "labelsTr").unlink()
    (data / "labelsTr").mkdir()
    for name in names:
        image = nibabel.load(phantoms / "labelsTr" / f"{name}.nii.gz")
        values = np.asarray(image.dataobj)
        values = values if name == names[-1] else np.where(values == 2, values, 0).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(values, image.affine), data / "labelsTr" / f"{name}.nii.gz")
    model = confident(tmp_path / "m.safetensors", 3)
    run = train(data, tmp_path / "run", from_model=model, keep_labels=True, **{**QUICK, "fold": "all", "folds": None})
    assert [label.name for label in read_card(run / "model.safetensors").plan.labels] == ["ball", "rod", "lump"]
    assert [case.looked_for for case in seen] == [[False, True, True]] * (len(names) - 1) + [[True] * 3]
    assert all(3 in case.classes for case in seen)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(record["loss"]) for record in records)


@pytest.mark.parametrize("link", [False, True])
def test_a_model_in_the_folder_that_is_replaced_is_not_lost(link, phantoms, tmp_path):
    run = train(phantoms, tmp_path / "run", **{**QUICK, "overrides": [*TINY, *QUICK["overrides"]]})
    shutil.copytree(run, tmp_path / "other")
    files = {path.name for path in run.iterdir()}
    model = run
    if link:
        (tmp_path / "link.safetensors").symlink_to(run / "model.safetensors")
        model = tmp_path / "link.safetensors"
    with pytest.raises(UsageError, match=r"lies in .*run, which the new run would replace, and the model with it"):
        train(phantoms, run, from_model=model, overwrite=True, **QUICK)
    assert {path.name for path in run.iterdir()} == files
    train(phantoms, tmp_path / "other", from_model=model, overwrite=True, **QUICK)


def test_a_model_with_a_network_of_its_own_cannot_be_started_from(phantoms, tmp_path):
    overrides = [*TINY, *QUICK["overrides"]]
    run = train(phantoms, tmp_path / "run", network=own, **{**QUICK, "overrides": overrides})
    with pytest.raises(UsageError, match=r"network of its own \(.*own\), and --from .* without it, with network="):
        train(phantoms, tmp_path / "other", from_model=run, **QUICK)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("given", ["tail=rod", ["tail=rod"]])
def test_a_label_map_is_a_dictionary(given, phantoms, tmp_path):
    with pytest.raises(UsageError, match=r"label_map has the type (str|list), expected .* in a dictionary"):
        train(phantoms, tmp_path / "run", from_model=tmp_path, label_map=given, **QUICK)


def test_a_run_of_the_name_of_a_bundled_model_is_found_from_elsewhere(phantoms, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(phantoms, "hippocampus", **{**QUICK, "overrides": [*TINY, *QUICK["overrides"]]})
    run = train(phantoms, tmp_path / "run", from_model="hippocampus", **QUICK)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shutil.rmtree(run / "checkpoint")
    train(phantoms, run, resume=True, device="cpu")
    assert read_card(run / "model.safetensors").training["from"][0]["name"] == "Phantoms MR-fold0"


def trained(fold, folds=5, **training):
    """A model that was trained on a fold of the phantoms."""
    words = f"volseg train X --output RUN --fold {fold} --folds {folds} --seed 0"
    training = {"dataset": "Phantoms_MR", "fold": fold, "command": words} | training
    return ModelCard(name="m", plan=tiny_plan(), training=training)


def test_a_run_says_where_its_model_knows_the_cases_of_the_validation(phantoms, tmp_path, caplog):
    """Its scores would be too good, without a word."""
    path, card = tmp_path / "m.safetensors", trained(1)
    save_model(path, card, UNet(card.plan.network).state_dict())
    run = train(phantoms, tmp_path / "run", from_model=path, **QUICK)
    told = "alidation scores may be too good: the model was trained on Phantoms_MR, fold 1 of 5, so it may know cases "
    assert told in caplog.text
    assert told in (run / "plan.yaml").read_text()


@pytest.mark.parametrize(
    ("card", "names", "fold", "said"),
    [
        (trained("all"), ["Phantoms MR"], 0, "fold all of 5, so it may know cases that fold 0 of 5 validates on"),
        (trained(0, folds=2), ["Phantoms MR"], 0, "fold 0 of 2, so it may know cases that fold 0 of 5 validates on"),
        (trained(0), ["Phantoms MR"], 0, None),
        (trained(1), ["Phantoms MR"], "all", None),
        (trained(1), ["others"], 0, None),
        (trained(1, dataset="a + b", datasets={"a": 3, "b": 2}), ["c", "B"], 0, "trained on b, fold 1 of 5"),
        (ModelCard(name="m", plan=tiny_plan()), ["tiny"], 0, None),
    ],
)
def test_which_models_may_know_the_cases_of_a_fold(card, names, fold, said):
    found = Source(Path("m"), "m", "0" * 64, card, 0).seen(names, fold, 5)
    assert said in found if said else found == ""


def test_a_fold_starts_from_the_member_of_its_fold_whatever_their_order(tmp_path):
    """Sorted by name, fold_10 comes before fold_2; the member of another fold knows the cases of the validation."""
    paths = []
    for fold in (2, 0):
        card = trained(fold)
        paths.append(tmp_path / f"{fold}.safetensors")
        save_model(paths[-1], card, UNet(card.plan.network).state_dict())
    both = ensemble(paths, tmp_path / "both.safetensors")
    # Fold 1 is of none of them, so its number counts, and that of fold 3 is too large.
    assert [open_source(both, fold).member for fold in (0, 2, 1, 3, "all")] == [1, 0, 1, 0, 0]
    assert open_source(both, 0).seen(["Phantoms MR"], 0, 5) == ""
