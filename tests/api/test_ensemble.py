"""Ensembles: logits, model card, and which models are rejected."""

import json

import nibabel
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.pipeline import blob, tiny_plan, write_model
from volseg import Segmenter, ensemble, train
from volseg.api.describe import describe
from volseg.cli import app
from volseg.config import Channel, ComponentRule, Label
from volseg.data.cases.phantom import write_phantoms
from volseg.errors import InputError, UsageError
from volseg.files import sha256_of
from volseg.modelfile import ModelCard, load_model, read_card, save_model


@pytest.fixture
def models(tmp_path):
    return [write_model(tmp_path / f"{seed}.safetensors", seed=seed) for seed in (0, 1, 2)]


def changed(path, **changes):
    """Rewrite a model with another card and the same weights."""
    card, weights = load_model(path)
    save_model(path, card.model_copy(update=changes), weights)


def test_the_logits_are_the_mean_of_the_members(models, tmp_path):
    joined = ensemble(models, tmp_path / "all.safetensors")
    x = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    together, *alone = (
        Segmenter.load(path, device="cpu", precision="fp32").labeller.network(x) for path in (joined, *models)
    )
    torch.testing.assert_close(together, torch.stack(alone).mean(0))
    assert (alone[0] - alone[1]).abs().max() > 0.01


def test_the_file_holds_the_weights_and_the_records_of_its_members(models, tmp_path):
    for number, path in enumerate(models):
        scores = {"cases": 2, "foreground_dice": 0.5 + number / 10}
        changed(path, name=f"tiny-fold{number}", training={"licence": "CC0", "fold": number}, scores=scores)
    card, weights = load_model(ensemble(models, tmp_path / "all.safetensors"))
    for number, path in enumerate(models):
        _, plain = load_model(path)
        assert all(torch.equal(weights[f"members.{number}.{name}"], tensor) for name, tensor in plain.items())
    assert len(weights) == 3 * len(plain)
    assert (card.name, card.members) == ("tiny-ensemble3", 3)
    assert (card.training["dataset"], card.training["licence"]) == ("tiny", "CC0")
    assert card.training["command"] == "volseg ensemble tiny-fold0 tiny-fold1 tiny-fold2 --output MODEL"
    assert [one["fold"] for one in card.training["members"]] == [0, 1, 2]
    assert [one["sha256"] for one in card.training["members"]] == [sha256_of(path) for path in models]
    assert [one["foreground_dice"] for one in card.scores["members"]] == [0.5, 0.6, 0.7]


def test_float16_weights_give_the_same_labels_from_half_the_bytes(models, tmp_path):
    whole = ensemble(models, tmp_path / "whole.safetensors")
    half = ensemble(models, tmp_path / "half.safetensors", half=True)
    (card, weights), (half_card, halves) = load_model(whole), load_model(half)
    assert half_card.training.pop("command") == f"{card.training.pop('command')} --half"
    assert half_card == card
    assert {tensor.dtype for tensor in halves.values()} == {torch.float16}
    for name, tensor in weights.items():
        # Eleven significant bits, or the smallest step of float16.
        torch.testing.assert_close(halves[name].float(), tensor, rtol=2**-11, atol=2**-25)
    assert sum(tensor.nbytes for tensor in halves.values()) * 2 == sum(tensor.nbytes for tensor in weights.values())
    scan = (blob(), np.diag([1.5, 1.5, 2.0, 1.0]))
    one, other = (Segmenter.load(path, device="cpu", precision="fp32") for path in (whole, half))
    assert next(other.labeller.network.parameters()).dtype == torch.float32
    assert (one(scan).labels != other(scan).labels).mean() < 0.001


def test_a_weight_too_large_for_float16_is_rejected(models, tmp_path):
    card, weights = load_model(models[1])
    name = next(iter(weights))
    save_model(models[1], card, weights | {name: weights[name] + 1e5})
    with pytest.raises(UsageError, match=rf"members.1.{name} exceed 65504.*Leave out --half"):
        ensemble(models, tmp_path / "half.safetensors", half=True)
    assert not (tmp_path / "half.safetensors").exists()


def test_counts_are_not_halved(tmp_path):
    network = tiny_plan().network.model_copy(update={"norm": "batch"})
    models = [write_model(tmp_path / f"{seed}.safetensors", tiny_plan(network=network), seed) for seed in (0, 1)]
    card, weights = load_model(models[0])
    name = next(name for name in weights if name.endswith("num_batches_tracked"))
    save_model(models[0], card, weights | {name: torch.tensor(70_001)})
    _, halves = load_model(ensemble(models, tmp_path / "half.safetensors", half=True))
    assert halves[f"members.0.{name}"].item() == 70_001


def scored(rod, ball, cases, ball_cases):
    return {"labels": {"rod": {"dice": rod, "cases": cases}, "ball": {"dice": ball, "cases": ball_cases}}}


def test_out_of_fold_scores_are_means_over_the_cases_of_all_folds(models, tmp_path):
    for fold, scores in enumerate([scored(0.5, 0.7, 3, 2), scored(0.8, None, 1, 0), scored(0.6, 0.9, 2, 2)]):
        changed(models[fold], training={"fold": fold}, scores=scores)
    path = ensemble(models, tmp_path / "all.safetensors")
    found = read_card(path).scores["out_of_fold"]
    assert found["labels"]["rod"] == {"dice": pytest.approx((3 * 0.5 + 0.8 + 2 * 0.6) / 6), "cases": 6}
    assert found["labels"]["ball"] == {"dice": pytest.approx(0.8), "cases": 4}
    assert found["foreground_dice"] == pytest.approx((3.5 / 6 + 0.8) / 2)
    assert describe(path)["foreground_dice"] == found["foreground_dice"]


@pytest.mark.parametrize("unscored", [0, 1])
def test_there_are_no_out_of_fold_scores_if_a_fold_has_none(models, tmp_path, unscored):
    for fold, path in enumerate(models):
        changed(path, training={"fold": fold}, scores={} if fold == unscored else scored(0.5, 0.5, 2, 2))
    assert "out_of_fold" not in read_card(ensemble(models, tmp_path / "all.safetensors")).scores


@pytest.mark.parametrize("training", [{"fold": 0}, {"fold": "all"}, {}])
def test_there_are_no_out_of_fold_scores_without_a_fold_per_model(models, tmp_path, training):
    for path in models:
        changed(path, training=training, scores=scored(0.5, 0.5, 2, 2))
    path = ensemble(models, tmp_path / "all.safetensors")
    assert "out_of_fold" not in read_card(path).scores
    assert describe(path)["foreground_dice"] is None


def test_probabilities_are_the_softmax_of_the_mean_logits(models, tmp_path):
    joined = ensemble(models[:2], tmp_path / "all.safetensors")
    nibabel.save(nibabel.Nifti1Image(blob(), np.diag([1.5, 1.5, 2.0, 1.0])), tmp_path / "scan.nii.gz")
    files = [tmp_path / f"{name}.npy" for name in ("both", "one", "two")]
    for model, file in zip((joined, *models), files, strict=False):
        Segmenter.load(model, device="cpu", precision="fp32")(tmp_path / "scan.nii.gz", probabilities=file)
    both, one, two = (np.log(np.load(file).astype(np.float64)) for file in files)
    # Log probabilities are the mean of those of the members, up to a constant per voxel.
    rest = both - (one + two) / 2
    assert np.abs(rest - rest.mean(axis=0)).max() < 0.02
    assert np.abs(one - two).max() > 0.1


def test_ranges_of_the_training_cases_are_merged(tmp_path):
    def model(number, volumes, means, **changes):
        labels = tuple(Label(name=name, value=value, volume_ml_range=volumes) for name, value in (("a", 1), ("b", 2)))
        plan = tiny_plan(channels=(Channel(mean_range=means),), labels=labels, **changes)
        return write_model(tmp_path / f"{number}.safetensors", plan, number)

    both = [model(1, (1.0, 3.0), (10.0, 20.0), steps=7), model(2, (2.0, 4.0), (5.0, 15.0), steps=9)]
    plan = read_card(ensemble(both, tmp_path / "all.safetensors")).plan
    assert {label.volume_ml_range for label in plan.labels} == {(1.0, 4.0)}
    assert plan.channels[0].mean_range == (5.0, 20.0)
    unknown = [*both, model(3, None, (1.0, 2.0))]
    plan = read_card(ensemble(unknown, tmp_path / "more.safetensors")).plan
    assert {label.volume_ml_range for label in plan.labels} == {None}
    assert plan.channels[0].mean_range == (1.0, 20.0)


LARGEST, SMALL, LARGE = (
    ComponentRule(largest_only=True, dice_before=0.5, dice_after=0.6),
    ComponentRule(smallest_ml=0.1, dice_before=0.5, dice_after=0.6),
    ComponentRule(smallest_ml=0.3, largest_only=True),
)


@pytest.mark.parametrize(
    ("one", "two", "together"),
    [
        (LARGEST, LARGEST, ComponentRule(largest_only=True)),
        (LARGEST, LARGE, ComponentRule(largest_only=True)),
        (SMALL, LARGE, ComponentRule(smallest_ml=0.1)),
        (LARGE, LARGE, LARGE),
        (LARGEST, SMALL, None),
        (LARGEST, None, None),
        (None, SMALL, None),
        (None, None, None),
    ],
)
def test_postprocessing_is_what_all_members_agree_on(models, tmp_path, one, two, together):
    for path, rule in zip(models, (one, two), strict=False):
        changed(path, postprocessing={"rod": rule} if rule else {})
    path = ensemble(models[:2], tmp_path / "all.safetensors")
    assert read_card(path).postprocessing == ({"rod": together} if together else {})
    result = Segmenter.load(path, device="cpu")((blob(), np.diag([1.5, 1.5, 2.0, 1.0])))
    assert list(result.record["postprocessing"]) == (["rod"] if together else [])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spacing_mm": (2.0, 1.5, 1.0)}, r"1.safetensors does not fit .*: spacing_mm.2 is 1.0, expected 1.5"),
        ({"channels": (Channel(name="CT"),)}, "channels.0.name is CT, expected MRI"),
        ({"labels": (Label(name="ball", value=1), Label(name="rod", value=3))}, "labels.1.value is 3, expected 2"),
        ({"mirror_axes": (0,)}, r"mirror_axes is \[0\], expected \[\]"),
        ({"network": tiny_plan().network.model_copy(update={"norm": "batch"})}, "network.norm is batch, expected inst"),
    ],
)  # fmt: skip
def test_models_with_other_plans_are_rejected(models, tmp_path, changes, words):
    write_model(models[1], tiny_plan(**changes))
    with pytest.raises(InputError, match=words):
        ensemble(models, tmp_path / "all.safetensors")
    assert not (tmp_path / "all.safetensors").exists()


def test_other_unsuitable_models_are_rejected(models, tmp_path):
    output = tmp_path / "all.safetensors"
    for wrong in ([], models[:1], [models[0], models[0]]):
        with pytest.raises(UsageError, match="needs two models or more, each only once"):
            ensemble(wrong, output)
    with pytest.raises(InputError, match=r"no model .*absent"):
        ensemble([*models, tmp_path / "absent"], output)
    joined = ensemble(models[:2], output)
    with pytest.raises(UsageError, match="already exists"):
        ensemble(models, output)
    with pytest.raises(InputError, match="is already an ensemble of 2 networks"):
        ensemble([models[2], joined], tmp_path / "more.safetensors")
    with pytest.raises(UsageError, match=r"does not end in \.safetensors"):
        ensemble(models, tmp_path / "all.pth")
    save_model(models[1], ModelCard(name="tiny", plan=tiny_plan()), {"weight": torch.ones(1)})
    with pytest.raises(InputError, match=r"weights in .*1\.safetensors do not fit its plan"):
        ensemble(models, output, overwrite=True)
    assert read_card(output).members == 2


def test_the_folds_of_a_dataset_become_one_model(tmp_path):
    write_phantoms(tmp_path / "data", count=4, seed=9, kind="ct")
    settings = ("plan.features=[4, 8]", "plan.patch_size=[16, 16, 16]", "training.workers=0")
    runs = [
        train(tmp_path / "data", tmp_path / f"run{fold}", fold=fold, folds=2, steps=1, overrides=settings, device="cpu")
        for fold in (0, 1)
    ]
    output = tmp_path / "all.safetensors"
    done = CliRunner().invoke(app, ["ensemble", *map(str, runs), "--output", str(output), "--json"])
    assert done.exit_code == 0, done.output
    described = json.loads(done.stdout)
    assert described["what"] == "model Phantoms CT-ensemble2"
    assert "2 (Dice of each: Phantoms CT-fold0 " in described["members"]
    card = read_card(output)
    assert card.plan == read_card(runs[0] / "model.safetensors").plan
    assert [record["fold"] for record in card.training["members"]] == [0, 1]
    assert [scores["cases"] for scores in card.scores["members"]] == [2, 2]
    (runs[1] / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"run .*run1 has no model yet.*--resume"):
        ensemble(runs, output, overwrite=True)
