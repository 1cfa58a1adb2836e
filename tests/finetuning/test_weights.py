"""The first weights of a run that starts from a model: what is known is copied to the bit, what is new is as stated."""

import pytest
import torch

from tests.pipeline import tiny_plan
from volseg.config import Channel, Label
from volseg.errors import ConfigError
from volseg.finetuning.start import Match, Start
from volseg.finetuning.weights import STEM, freeze_encoder, require_matchable, start_weights
from volseg.networks import NETWORKS, build_network

BALL, ROD = Label(name="ball", value=1), Label(name="rod", value=2)


def plan_of(labels=(BALL, ROD), channels=("MRI",), regions=False, **network):
    changes = {"in_channels": len(channels), "classes": len(labels) + (not regions), **network}
    return tiny_plan(
        labels=labels,
        channels=tuple(Channel(name=name) for name in channels),
        regions=regions,
        network=tiny_plan().network.model_copy(update=changes),
    )


def networks(model, plan, labels, channels, seed=0):
    torch.manual_seed(1)
    source = build_network(model.network)
    # No bias of a head is 0 after training.
    for head in source.heads:
        torch.nn.init.normal_(head.bias)
    network = build_network(plan.network)
    start = Start(name="m", sha256="", labels=Match(**labels), channels=Match(**channels))
    start_weights(network, source, model, plan, start, seed)
    return source.state_dict(), network.state_dict()


SAME = {"taken": {"MRI": "MRI"}}


def test_with_the_same_labels_and_channels_all_weights_are_the_models():
    old, new = networks(plan_of(), plan_of(), {"taken": {"ball": "ball", "rod": "rod"}}, SAME)
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_rows_follow_the_names_the_background_stays_and_new_rows_have_no_mean():
    plan = plan_of((Label(name="rod", value=1), Label(name="tail", value=2)))
    labels = {"taken": {"rod": "rod", "tail": None}, "dropped": ("ball",)}
    old, new = networks(plan_of(deep_supervision=True), plan, labels, SAME)
    for name in (name for name in old if name.startswith("heads.")):
        assert torch.equal(new[name][:2], old[name][[0, 2]])
        assert not torch.equal(new[name][2], old[name][1])
    weight, bias = new["heads.0.weight"], new["heads.0.bias"]
    assert bias[2] == 0
    assert weight[2].mean().abs() < 1e-7
    assert 0 < weight[2].std() < 0.5 * weight[:2].std()
    others = [name for name in old if not name.startswith("heads.")]
    assert all(torch.equal(old[name], new[name]) for name in others)


def test_new_rows_are_those_of_the_seed():
    plan = plan_of((BALL, Label(name="tail", value=2)))
    labels = {"taken": {"ball": "ball", "tail": None}, "dropped": ("rod",)}
    one, again, other = (networks(plan_of(), plan, labels, SAME, seed)[1]["heads.0.weight"] for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_kept_labels_are_copied_after_those_of_the_dataset():
    plan = plan_of((Label(name="tail", value=1), Label(name="rod", value=2)))
    old, new = networks(plan_of(), plan, {"taken": {"tail": None}, "kept": ("rod",)}, SAME)
    assert torch.equal(new["heads.0.weight"][[0, 2]], old["heads.0.weight"][[0, 2]])


def test_regions_have_no_background_row():
    plan = plan_of((ROD, BALL), regions=True)
    labels = {"taken": {"rod": "rod", "ball": "ball"}}
    old, new = networks(plan_of(regions=True), plan, labels, SAME)
    assert torch.equal(new["heads.0.weight"], old["heads.0.weight"][[1, 0]])


def test_known_channels_are_copied_and_a_new_one_is_their_mean():
    channels = {"taken": {"T2": "T2", "new": None, "T1": "T1"}}
    labels = {"taken": {"ball": "ball", "rod": "rod"}}
    old, new = networks(plan_of(channels=("T1", "T2")), plan_of(channels=("T2", "new", "T1")), labels, channels)
    assert torch.equal(new[STEM][:, [0, 2]], old[STEM][:, [1, 0]])
    assert torch.equal(new[STEM][:, 1], old[STEM].mean(1))


def test_without_a_norm_that_cancels_it_the_sum_over_the_channels_keeps_its_size():
    channels = {"taken": {"T1": "T1", "new": None}}
    labels = {"taken": {"ball": "ball", "rod": "rod"}}
    old, new = networks(
        plan_of(channels=("T1",), norm="none"), plan_of(channels=("T1", "new"), norm="none"), labels, channels
    )
    assert torch.equal(new[STEM].sum(1), old[STEM].sum(1))


def test_a_network_of_ones_own_starts_only_with_the_same_labels(monkeypatch):
    monkeypatch.setitem(NETWORKS, "own", lambda config: torch.nn.Conv3d(config.in_channels, config.classes, 1))
    model, plan = plan_of(architecture="own"), plan_of((ROD, BALL), architecture="own")
    source, network = build_network(model.network), build_network(plan.network)
    same = Start(name="m", sha256="", labels=Match(taken={"ball": "ball", "rod": "rod"}), channels=Match(**SAME))
    start_weights(network, source, model, model, same, 0)
    assert torch.equal(network.weight, source.weight)
    other = Start(name="m", sha256="", labels=Match(taken={"rod": "rod", "ball": "ball"}), channels=Match(**SAME))
    require_matchable(model, model, same)
    with pytest.raises(ConfigError, match="The network of m is 'own', not volseg's U-Net"):
        require_matchable(model, plan, other)
    with pytest.raises(ConfigError, match="no part called encoder"):
        freeze_encoder(network)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_frozen_encoder_changes_in_nothing(norm):
    torch.manual_seed(0)
    network = build_network(plan_of(norm=norm).network)
    freeze_encoder(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    outputs = network(torch.randn(2, 1, 16, 16, 16))
    sum(output.square().mean() for output in outputs).backward()
    assert all(parameter.grad is None for parameter in network.encoder.parameters())
    assert all(parameter.grad is not None for parameter in network.decoder.parameters())
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("encoder."))
