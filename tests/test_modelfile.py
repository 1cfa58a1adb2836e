"""The model file: a round trip, and files that are rejected."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.pipeline import tiny_plan, write_model
from volseg.config import ComponentRule, Label
from volseg.errors import InputError
from volseg.modelfile import ModelCard, load_model, read_card, save_model


def test_round_trip(tmp_path):
    rules = {"rod": ComponentRule(smallest_ml=0.1, dice_before=0.25, dice_after=0.5)}
    card = ModelCard(
        name="tiny", plan=tiny_plan(), training={"cases": 3}, postprocessing=rules, scores={"foreground_dice": 0.5}
    )
    weights = {"a": torch.randn(3, 4), "b": torch.arange(3)}
    save_model(tmp_path / "m.safetensors", card, weights)
    read, loaded = load_model(tmp_path / "m.safetensors")
    assert read == card
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_a_file_from_before_postprocessing_has_none(tmp_path):
    path = write_model(tmp_path / "m.safetensors")
    card, weights = load_model(path)
    document = json.loads(card.model_dump_json())
    assert document.pop("postprocessing") == {}
    save_file(weights, path, metadata={"volseg": json.dumps(document)})
    assert read_card(path) == card


@pytest.mark.parametrize(
    ("regions", "name", "words"),
    [
        (False, "liver", "postprocessing has rules for liver, but the plan has no such label"),
        (True, "rod", "postprocessing has rules for rod, but another region contains it"),
    ],
)
def test_rules_without_a_label_or_inside_another_region_are_rejected(tmp_path, regions, name, words):
    network = tiny_plan().network.model_copy(update={"classes": 2 if regions else 3})
    nested = (Label(name="ball", value=1, parts=(1, 2)), Label(name="rod", value=2, parts=(2,)))
    labels = nested if regions else tiny_plan().labels
    card = ModelCard(name="tiny", plan=tiny_plan(regions=regions, network=network, labels=labels))
    save_model(
        tmp_path / "m.safetensors",
        card.model_copy(update={"postprocessing": {name: ComponentRule(largest_only=True)}}),
        {"a": torch.ones(1)},
    )
    with pytest.raises(InputError, match=words):
        read_card(tmp_path / "m.safetensors")


def test_weights_without_a_document_are_rejected(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="not a model that volseg wrote"):
        read_card(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{", "corrupt"),
        ("[]", "corrupt"),
        ('{"schema_version": 99}', "or a newer one"),
        ('{"schema_version": 1}', "has schema version 1, but this volseg reads 2 and 3"),
        ('{"schema_version": 2}', "plan"),
    ],
)
def test_invalid_documents_are_rejected(tmp_path, document, words):
    save_file({"a": torch.ones(1)}, tmp_path / "m.safetensors", metadata={"volseg": document})
    with pytest.raises(InputError, match=words):
        read_card(tmp_path / "m.safetensors")


def test_a_pickle_is_rejected_without_loading_it(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="not a model file"):
        read_card(tmp_path / "m.safetensors")


def test_a_truncated_file_is_rejected(tmp_path):
    path = write_model(tmp_path / "m.safetensors")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="is cut short: its tensors have 8572 bytes, but only 8562 are there"):
        load_model(path)
