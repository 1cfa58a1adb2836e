"""A model folder of nnU-Net as one model file: what is found, written and rejected."""

import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from tests.interop.folders import write_folder
from tests.interop.variants import VARIANTS, Variant
from volseg import Segmenter
from volseg.api.importing import import_nnunet
from volseg.cli import app
from volseg.errors import InputError, UsageError
from volseg.files import sha256_of
from volseg.modelfile import load_model
from volseg.networks import Ensemble


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres", Variant())


@pytest.fixture
def two_folds(tmp_path):
    return write_folder(tmp_path / "model", VARIANTS["folds"])


def change_checkpoint(path, **values):
    torch.save({**torch.load(path, weights_only=True), **values}, path)


def run(*arguments):
    return CliRunner().invoke(app, ["import-nnunet", *map(str, arguments)])


def test_the_card_names_the_source_and_nothing_of_this_machine(tmp_path, folder):
    card, _ = load_model(import_nnunet(folder, tmp_path / "new" / "model.safetensors"))
    assert (card.name, card.members, card.plan.mirror_axes) == ("small", 1, (0, 2))
    assert card.training == {
        "source": "nnU-Net v2 model folder",
        "dataset": "Dataset007_Small",
        "licence": None,
        "cases": 5,
        "plans": "nnUNetPlans",
        "configuration": "3d_fullres",
        "trainer": "nnUNetTrainer",
        "checkpoint": "checkpoint_final.pth",
        "folds": "0",
        "sha256": {"fold_0": sha256_of(folder / "fold_0" / "checkpoint_final.pth")},
    }
    assert str(tmp_path) not in card.model_dump_json()


def test_folds_become_members_whose_logits_are_averaged(tmp_path, two_folds):
    both = import_nnunet(two_folds, tmp_path / "both.safetensors")
    card, weights = load_model(both)
    assert card.members == 2
    assert card.training["folds"] == "0, 1"
    alone = [import_nnunet(two_folds, tmp_path / f"{fold}.safetensors", folds=[fold]) for fold in (0, 1)]
    for member, one in enumerate(alone):
        _, plain = load_model(one)
        assert all(torch.equal(weights[f"members.{member}.{name}"], tensor) for name, tensor in plain.items())
    networks = [Segmenter.load(one, device="cpu", precision="fp32").labeller.network for one in (both, *alone)]
    assert isinstance(networks[0], Ensemble)
    x = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    together, first, second = (network(x) for network in networks)
    torch.testing.assert_close(together, (first + second) / 2)


def test_folds_are_taken_in_numeric_order_and_all_only_alone_or_on_request(tmp_path, folder):
    for name in ("fold_10", "fold_2", "fold_all", "fold_old"):
        shutil.copytree(folder / "fold_0", folder / name)

    def folds(**options):
        return load_model(import_nnunet(folder, tmp_path / "m.safetensors", overwrite=True, **options))[0].training[
            "folds"
        ]

    assert folds() == "0, 2, 10"
    assert folds(folds=["all"]) == "all"
    assert folds(folds=["10", "0"]) == "10, 0"
    for name in ("fold_0", "fold_2", "fold_10"):
        shutil.rmtree(folder / name)
    assert folds() == "all"


def test_another_checkpoint_can_be_named(tmp_path, folder):
    (folder / "fold_0" / "checkpoint_final.pth").rename(folder / "fold_0" / "checkpoint_best.pth")
    with pytest.raises(InputError, match=r"no fold_\*/checkpoint_final.pth.*holds fold_0/checkpoint_best.pth"):
        import_nnunet(folder, tmp_path / "model.safetensors")
    card, _ = load_model(import_nnunet(folder, tmp_path / "m.safetensors", checkpoint="checkpoint_best.pth"))
    assert card.training["checkpoint"] == "checkpoint_best.pth"


@pytest.mark.parametrize("folds", [[], [0, 0], ["../elsewhere"], ["one"]])
def test_invalid_folds_are_rejected(tmp_path, folder, folds):
    with pytest.raises(UsageError, match="expected numbers, each only once, or all"):
        import_nnunet(folder, tmp_path / "model.safetensors", folds=folds)


def test_a_missing_fold_is_rejected_with_the_folds_that_exist(tmp_path, folder):
    with pytest.raises(InputError, match=r"There is no .*fold_3.*holds fold_0/checkpoint_final.pth"):
        import_nnunet(folder, tmp_path / "model.safetensors", folds=[3])


@pytest.mark.parametrize("values", [{"init_args": {"configuration": "3d_lowres"}}, {"trainer_name": "nnUNetTrainerBN"}])
def test_folds_trained_in_different_ways_are_rejected(tmp_path, two_folds, values):
    change_checkpoint(two_folds / "fold_1" / "checkpoint_final.pth", **values)
    with pytest.raises(InputError, match="fold_1 was trained as"):
        import_nnunet(two_folds, tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
def test_a_missing_or_corrupt_document_is_one_sentence(tmp_path, folder, name):
    (folder / name).write_text("{")
    with pytest.raises(InputError, match=f"{name} is not valid JSON"):
        import_nnunet(folder, tmp_path / "model.safetensors")
    (folder / name).write_text("[]")
    with pytest.raises(InputError, match=f"{name} is invalid"):
        import_nnunet(folder, tmp_path / "model.safetensors")
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"Could not read .*{name}: No such file"):
        import_nnunet(folder, tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()


def test_the_verb_prints_what_was_imported(tmp_path, folder):
    result = run(folder, "--output", tmp_path / "model.safetensors", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["what"] == "model small"
    assert "nnU-Net v2 model folder" in document["trained_on"]


def test_the_verb_takes_folds_and_ends_with_2_on_bad_input(tmp_path, two_folds):
    model = tmp_path / "model.safetensors"
    assert run(two_folds, "--output", model, "--folds", "1").exit_code == 0
    assert load_model(model)[0].training["folds"] == "1"
    again = run(two_folds, "--output", model, "--folds", "0, 1")
    assert again.exit_code == 2
    assert "already exists" in again.stderr
    assert run(two_folds, "--output", model, "--folds", "0, 1", "--overwrite").exit_code == 0
    assert load_model(model)[0].members == 2
    for arguments in (
        (two_folds, "--output", tmp_path / "model.pth"),
        (tmp_path, "--output", tmp_path / "m.safetensors"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert result.stderr.count("Error:") == 1
