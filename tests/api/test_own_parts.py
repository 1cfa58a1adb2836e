"""A network, an optimiser and callbacks of one's own in `volseg.train`: training, resume, model file, prediction."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import volseg
from tests.pipeline import TINY
from volseg.api.describe import describe, profile_document
from volseg.cli import app
from volseg.errors import ConfigError, InputError, TrainingError, UsageError
from volseg.modelfile import read_card
from volseg.networks import UNet
from volseg.training.optimisers import Muon

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = {"overrides": (*TINY, "training.workers=0"), "device": "cpu"}


def planned(plan):
    """The network that the plan describes."""
    return UNet(plan.network)


class Odd(nn.Module):
    """Tied weights, a weight that is no convolution, buffers (one infinite, one of integers), one output alone."""

    def __init__(self, plan) -> None:
        super().__init__()
        channels, classes = plan.network.in_channels, plan.network.classes
        self.stem = nn.Conv3d(channels, 4, 3, padding=1)
        self.once = nn.Conv3d(4, 4, 3, padding=1)
        self.again = nn.Conv3d(4, 4, 3, padding=1)
        self.again.weight = self.once.weight
        self.mix = nn.Linear(4, 4)
        self.norm = nn.BatchNorm3d(4)
        self.head = nn.Conv3d(4, classes, 1)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def forward(self, x):
        x = self.again(torch.relu(self.once(torch.relu(self.stem(x)))))
        x = self.mix(x.movedim(1, -1)).movedim(-1, 1)
        return self.head(torch.relu(self.norm(x)))


class Lazy(nn.Module):
    """Its weights have no shape before it has seen an image."""

    def __init__(self, plan) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LazyConv3d(4, 3, padding=1), nn.ReLU(), nn.LazyConv3d(plan.network.classes, 1))

    def forward(self, x):
        return self.layers(x)


def adamw(network, learning_rate, weight_decay):
    return torch.optim.AdamW(network.parameters(), lr=learning_rate / 10, weight_decay=weight_decay)


def momentum(network, learning_rate, weight_decay):
    """Two groups, one of which learns ten times as slowly."""
    first, *others = network.parameters()
    groups = [{"params": [first], "lr": 0.1 * learning_rate}, {"params": others}]
    return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, weight_decay=weight_decay)


class Counting(torch.optim.SGD):
    """Counts its steps in its group and takes smaller steps with time, as optimisers without a schedule do."""

    def __init__(self, parameters, lr) -> None:
        super().__init__(parameters, lr=lr)
        for group in self.param_groups:
            group["count"], group["sizes"], group["weight"] = 0, (1.0, 0.5), torch.tensor(0.25, dtype=torch.float64)

    def step(self, closure=None):
        for group in self.param_groups:
            group["count"] += 1
            group["weight"] = group["weight"] / 3
            for parameter in group["params"]:
                size = group["lr"] * (group["sizes"][1] + group["weight"].item()) / group["count"]
                parameter.data.add_(parameter.grad, alpha=-size)
                self.state[parameter]["seen"] = self.state[parameter].get("seen", 0) + 1


def counting(network, learning_rate, _):
    return Counting(network.parameters(), learning_rate)


def model_of(run):
    return load_file(run / "model.safetensors")


def equal(one, other):
    """Whether two sets of tensors are the same to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def default(phantoms, tmp_path_factory, one_thread):
    return volseg.train(phantoms, tmp_path_factory.mktemp("default") / "run", steps=4, **SETTINGS)


@pytest.fixture(scope="module")
def own(phantoms, tmp_path_factory, one_thread):
    """A run with the planned network and optimiser, given by the caller."""
    run = tmp_path_factory.mktemp("own") / "run"
    return volseg.train(phantoms, run, steps=4, network=planned, optimiser=Muon, **SETTINGS)


@pytest.fixture(scope="module")
def odd(phantoms, tmp_path_factory, one_thread):
    return volseg.train(phantoms, tmp_path_factory.mktemp("odd") / "run", steps=2, network=Odd, **SETTINGS)


def test_the_planned_network_and_optimiser_given_by_the_caller_train_the_same_model(default, own):
    assert equal(model_of(default), model_of(own))
    assert (default / "validation.json").read_text() == (own / "validation.json").read_text()


def test_the_card_names_the_parts_and_nothing_to_import(own):
    card = read_card(own / "model.safetensors")
    assert card.plan.network.architecture == "custom"
    assert card.training["custom_network"] == f"{__name__}.planned"
    assert card.training["custom_optimiser"] == "volseg.training.optimisers.Muon"
    assert "parts" not in card.training["command"]
    shown = describe(own / "model.safetensors")["network"]
    assert shown == f"custom, made by {__name__}.planned: load it in Python with Segmenter.load(path, network=...)"


def test_a_model_is_loaded_with_its_factory_and_predicts_what_the_default_does(default, own, phantoms):
    scan = next((phantoms / "imagesTs").iterdir())
    before = torch.get_rng_state()
    segmenter = volseg.Segmenter.load(own / "model.safetensors", device="cpu", network=planned)
    assert torch.equal(before, torch.get_rng_state())
    plain = volseg.Segmenter.load(default / "model.safetensors", device="cpu")
    assert (segmenter(scan).labels == plain(scan).labels).all()


def test_without_its_factory_a_model_is_named_for_what_it_is(own, phantoms, tmp_path):
    model = own / "model.safetensors"
    expected = r"was trained with a network of its own \(.*planned\).*Segmenter.load\(path, network=\.\.\.\)"
    with pytest.raises(ConfigError, match=expected):
        volseg.Segmenter.load(model)
    with pytest.raises(ConfigError, match=expected):
        volseg.predict(next((phantoms / "imagesTs").iterdir()), model, tmp_path / "out")
    copied = tmp_path / "copy.safetensors"
    copied.write_bytes(model.read_bytes())
    with pytest.raises(ConfigError, match=expected):
        volseg.ensemble([model, copied], tmp_path / "e.safetensors")
    with pytest.raises(ConfigError, match=expected):
        profile_document(None, str(model))
    shown = CliRunner().invoke(app, ["info", str(model)])
    assert shown.exit_code == 0
    assert "custom, made by" in shown.output
    for words in (["predict", "scan.nii", "--model", model, "--output", "out"], ["profile", "--model", model],
                  ["ensemble", model, copied, "--output", tmp_path / "e.safetensors"]):  # fmt: skip
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 2
        assert "was trained with a network of its own" in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        (lambda plan: nn.Conv3d(1, 3, 1), InputError, "of another network than the one that network= makes: it lacks"),
        (
            lambda plan: UNet(plan.network.model_copy(update={"features": (4, 16)})),
            InputError,
            r"in it .* is 8x4x3x3x3 floating, not 16x4x3x3x3 floating.*trained with \(.*planned\)",
        ),
        (lambda plan: None, UsageError, "returned None, expected a torch.nn.Module"),
        (lambda plan: nn.ReLU(), UsageError, "has no parameters"),
    ],
)
def test_a_factory_of_something_else_is_refused_in_a_sentence(own, factory, error, message):
    with pytest.raises(error, match=message):
        volseg.Segmenter.load(own / "model.safetensors", device="cpu", network=factory)


def test_a_factory_for_a_model_of_volseg_is_refused(default):
    with pytest.raises(UsageError, match=r"is volseg's U-Net, which volseg builds itself. Leave out network="):
        volseg.Segmenter.load(default / "model.safetensors", device="cpu", network=planned)


def test_models_of_one_network_become_an_ensemble(own, phantoms, tmp_path):
    other = tmp_path / "other.safetensors"
    other.write_bytes((own / "model.safetensors").read_bytes())
    joined = volseg.ensemble([own / "model.safetensors", other], tmp_path / "e.safetensors", network=planned)
    scan = next((phantoms / "imagesTs").iterdir())
    found = volseg.Segmenter.load(joined, device="cpu", network=planned)
    single = volseg.Segmenter.load(own / "model.safetensors", device="cpu", network=planned)
    assert (found(scan).labels == single(scan).labels).all()
    with pytest.raises(ConfigError, match=r"network of its own \(.*planned\)"):
        volseg.Segmenter.load(joined)
    (outcome,) = volseg.predict(scan, found, tmp_path / "out")
    assert outcome.error is None


def test_a_network_unlike_any_of_volseg_is_trained_saved_and_loaded(odd, phantoms):
    saved = model_of(odd)
    assert torch.equal(saved["once.weight"], saved["again.weight"])
    assert saved["norm.num_batches_tracked"] == 2
    segmenter = volseg.Segmenter.load(odd / "model.safetensors", device="cpu", network=Odd)
    network = segmenter.labeller.network
    assert network.once.weight is network.again.weight
    assert torch.equal(network.mask, torch.tensor([0.0, -torch.inf]))
    assert segmenter(next((phantoms / "imagesTs").iterdir())).labels.ndim == 3
    assert (odd / "report.html").exists()
    assert json.loads((odd / "validation.json").read_text())["cases"]


def test_the_average_of_tied_weights_is_taken_once(phantoms, tmp_path):
    """After two steps with a decay of 1/2 the average is half of the second weights and half of the first average."""
    seen = []

    def look(record, state):
        seen.append((state.network.once.weight.clone(), state.ema.once.weight.clone()))

    overrides = (*SETTINGS["overrides"], "training.ema_decay=0.2", "training.validations=0")
    volseg.train(phantoms, tmp_path / "run", steps=2, network=Odd, callbacks=look, overrides=overrides, device="cpu")
    (_, first), (weights, second) = seen
    torch.testing.assert_close(second, first.lerp(weights, 0.8))


def test_a_network_whose_shapes_follow_from_its_input(phantoms, tmp_path):
    run = volseg.train(phantoms, tmp_path / "run", steps=1, network=Lazy, **SETTINGS)
    assert model_of(run)["layers.0.weight"].shape == (4, 1, 3, 3, 3)
    volseg.Segmenter.load(run / "model.safetensors", device="cpu", network=Lazy)


class Fixed(nn.Module):
    """Takes patches of 16 x 16 x 16 alone, as one with a position for each voxel does."""

    def __init__(self, plan) -> None:
        super().__init__()
        self.layer = nn.Conv3d(1, plan.network.classes, 1)
        self.position = nn.Parameter(torch.zeros(1, 1, 16, 16, 16))

    def forward(self, x):
        return self.layer(x + self.position)


class Unready(nn.Module):
    def __init__(self, plan) -> None:
        super().__init__()
        self.layer = nn.Conv3d(1, plan.network.classes, 1)

    def forward(self, x):
        return [self.layer(x)]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda plan: nn.Conv3d(1, 2, 1), r"returned \(1, 2, 16, 16, 16\) .* expected logits \(B, 3, 16, 16, 16\)"),
        (lambda plan: nn.Conv3d(1, 3, 3), r"returned \(1, 3, 14, 14, 14\) .* expected logits \(B, 3, 16, 16, 16\)"),
        (lambda plan: nn.Conv3d(2, 3, 1), r"Conv3d raised RuntimeError .* for a patch \(B, 1, 16, 16, 16\)"),
        (lambda plan: nn.Conv3d(1, 3, 1).requires_grad_(False), "has requires_grad, so none would learn"),
        (Fixed, r"patch \(B, 1, 14, 14, 14\).*progressive_patch_size=0 for full ones"),
        (Unready, "returned a list in evaluation mode"),
        (nn.Conv3d(1, 3, 1), "network is a Conv3d; give a function that makes it"),
        ("unet", "network has to be a function"),
    ],
)
def test_a_network_that_does_not_suit_is_refused_before_anything_is_written(phantoms, tmp_path, network, message):
    with pytest.raises(UsageError, match=message):
        volseg.train(phantoms, tmp_path / "run", steps=1, network=network, **SETTINGS)
    assert not (tmp_path / "run" / "settings.yaml").exists()


def test_a_network_for_full_patches_alone(phantoms, tmp_path):
    overrides = (*SETTINGS["overrides"], "training.progressive_patch_size=0")
    run = volseg.train(phantoms, tmp_path / "run", steps=1, network=Fixed, overrides=overrides, device="cpu")
    assert "position" in model_of(run)


def test_a_network_of_ones_own_starts_from_its_own_weights(phantoms, tmp_path):
    with pytest.raises(UsageError, match="Both network= and from_model= were given"):
        volseg.train(phantoms, tmp_path / "run", steps=1, network=planned, from_model="hippocampus", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_network_and_an_architecture_are_not_both_given(phantoms, tmp_path):
    overrides = (*SETTINGS["overrides"], "plan.architecture=unet")
    with pytest.raises(UsageError, match=r"Both network= and plan.architecture=unet were given"):
        volseg.train(phantoms, tmp_path / "run", steps=1, network=planned, overrides=overrides, device="cpu")


@pytest.mark.parametrize(("optimiser", "name"), [(adamw, "torch.optim.adamw.AdamW"), (counting, "Counting"),
                                                 (momentum, "torch.optim.sgd.SGD")])  # fmt: skip
def test_a_run_resumes_exactly_with_an_optimiser_of_ones_own(phantoms, tmp_path, optimiser, name):
    parts = {"network": Odd, "optimiser": optimiser, **SETTINGS}
    whole = volseg.train(phantoms, tmp_path / "whole", steps=4, **parts)
    halves = volseg.train(
        phantoms, tmp_path / "halves", steps=4, callbacks=lambda record, _: record["step"] == 2, **parts
    )
    assert json.loads((halves / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 2
    volseg.train(phantoms, halves, resume=True, network=Odd, optimiser=optimiser, device="cpu")
    found = [load_file(run / "checkpoint" / "state.safetensors") for run in (whole, halves)]
    assert equal(*found)
    assert equal(model_of(whole), model_of(halves))
    with pytest.raises(InputError, match=f"with the optimiser .*{name}, but this run has muon, so give that one"):
        volseg.train(phantoms, halves, resume=True, network=Odd, optimiser=Muon, device="cpu")


def test_the_schedule_keeps_the_ratio_of_the_groups(phantoms, tmp_path):
    rates = []

    def look(record, state):
        rates.append([group["lr"] for group in state.optimizer.param_groups] + [record["learning_rate"]])

    volseg.train(phantoms, tmp_path / "run", steps=3, optimiser=momentum, callbacks=[look], **SETTINGS)
    assert len({rate[2] for rate in rates}) == 3
    for first, second, whole in rates:
        assert (first, second) == (pytest.approx(0.1 * whole), pytest.approx(whole))


class Unstorable(torch.optim.SGD):
    def __init__(self, parameters) -> None:
        super().__init__(parameters, lr=0.1)
        self.param_groups[0]["rule"] = object()


@pytest.mark.parametrize(
    ("optimiser", "message"),
    [
        (torch.optim.AdamW, r"give a function that makes it: optimiser=lambda network, rate, decay"),
        (torch.optim.SGD([torch.zeros(1)], lr=0.1), r"give a function that makes it"),
        (lambda *_: None, "returned a NoneType, expected a torch.optim.Optimizer"),
        (lambda network, *_: torch.optim.LBFGS(network.parameters()), "LBFGS computes the loss several times a step"),
        (
            lambda *_: torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1),
            "parameters that are not those of the network",
        ),
        (lambda network, *_: Unstorable(network.parameters()), "The optimiser keeps rule, of the type object"),
    ],
)
def test_an_optimiser_that_does_not_suit_is_refused_before_anything_is_written(phantoms, tmp_path, optimiser, message):
    with pytest.raises(UsageError, match=message):
        volseg.train(phantoms, tmp_path / "run", steps=1, optimiser=optimiser, **SETTINGS)
    assert not (tmp_path / "run" / "settings.yaml").exists()


def test_a_resumed_run_needs_its_parts_and_no_others(own, default, phantoms, caplog):
    for parts, missing in (({}, "network=..., optimiser=..."), ({"network": planned}, "optimiser=...")):
        with pytest.raises(UsageError, match=rf"its caller's own \(.*volseg.train\(.*resume=True, {missing}\)"):
            volseg.train(phantoms, own, resume=True, device="cpu", **parts)
    done = CliRunner().invoke(app, ["train", str(phantoms), "--output", str(own), "--finish"])
    assert done.exit_code == 2
    assert "finish=True, network=...)" in " ".join(done.output.split())
    with pytest.raises(UsageError, match=r"was started without optimiser=. Leave it out"):
        volseg.train(phantoms, default, resume=True, device="cpu", optimiser=Muon)
    with pytest.raises(UsageError, match=r"was started without network=. Leave it out"):
        volseg.train(phantoms, default, resume=True, device="cpu", network=planned)
    with caplog.at_level(logging.WARNING, "volseg"):
        volseg.train(phantoms, default, resume=True, device="cpu", transforms=lambda sample: sample)
    assert "goes on with transforms=" in caplog.text


def test_a_finished_run_needs_its_network_alone(own, phantoms):
    before = model_of(own)
    volseg.train(phantoms, own, finish=True, network=planned, device="cpu")
    assert equal(before, model_of(own))
    card = read_card(own / "model.safetensors")
    assert card.training["custom_optimiser"] == "volseg.training.optimisers.Muon"


def test_callbacks_see_every_record_and_one_ends_the_run_with_a_model(phantoms, tmp_path):
    seen = []

    def look(record, state):
        assert state.step == record["step"]
        seen.append(record)

    run = volseg.train(
        phantoms, tmp_path / "run", steps=9, callbacks=[look, lambda record, state: state.step >= 3], **SETTINGS
    )
    assert seen == [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in seen] == [1, 2, 3]
    training = read_card(run / "model.safetensors").training
    assert (training["steps"], training["finished"]) == (3, "early, after step 3 of 9")
    assert json.loads((run / "validation.json").read_text())["cases"]


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (lambda record, _: 1 / (2 - record["step"]), "<lambda> raised ZeroDivisionError: .* after step 2"),
        (lambda record, _: record["step"] == 2 and "no", "<lambda> returned 'no', expected True, False or None after"),
    ],
)
def test_a_callback_that_fails_ends_the_run_and_keeps_its_checkpoint(phantoms, tmp_path, callback, message):
    def only_second(record, state):
        return callback(record, state) if record["step"] == 2 else None

    only_second.__qualname__ = "<lambda>"
    with pytest.raises(TrainingError, match=message):
        volseg.train(phantoms, tmp_path / "run", steps=3, callbacks=[only_second], **SETTINGS)
    whole = volseg.train(phantoms, tmp_path / "whole", steps=3, **SETTINGS)
    run = volseg.train(phantoms, tmp_path / "run", resume=True, device="cpu")
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert equal(model_of(run), model_of(whole))


def test_a_class_is_no_callback(phantoms, tmp_path):
    with pytest.raises(UsageError, match=r"callbacks is the class Odd; give an object of it"):
        volseg.train(phantoms, tmp_path / "run", steps=1, callbacks=[Odd], **SETTINGS)
