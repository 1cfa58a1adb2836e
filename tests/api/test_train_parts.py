"""What `volseg.train` hands to the loop, the sampler, the cache and the model file: every setting arrives.

The loop is replaced by one that takes no step, so that a run costs its preprocessing and its validation.
"""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.pipeline import TINY, tiny_plan
from volseg import train
from volseg.api.training import fit as fit_module
from volseg.api.training import prepare as prepare_module
from volseg.api.validation import validator
from volseg.config import TrainingConfig, load_config
from volseg.data.cases.cache import cache_cases
from volseg.data.cases.dataset import open_dataset
from volseg.errors import ConfigError
from volseg.losses import SegmentationLoss
from volseg.modelfile import read_card
from volseg.networks import build_network
from volseg.planning.planner import read_plan
from volseg.training.budget import Budget
from volseg.training.ranks import SINGLE_PROCESS
from volseg.training.run.settings import RunSettings

pytestmark = pytest.mark.usefixtures("one_thread")
# Every field of the training configuration, none with its default.
TRAINING = {
    "loss": "dice",
    "learning_rate": 0.003,
    "weight_decay": 0.004,
    "pull_to_model": 0.5,
    "gradient_clip": 5.0,
    "warmup": 0.1,
    "ema_fraction": 0.07,
    "ema_decay": 0.7,
    "oversample_foreground": 0.6,
    "dataset_shares": "equal",
    "progressive_patch_size": 0.4,
    "validations": 3,
    "checkpoint_seconds": 17.0,
    "workers": 0,
    "precision": "fp32",
}


def recorded(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What `fit` is called with by the next run; it takes no step but changes network and EMA."""
    seen = SimpleNamespace()

    def fit(state, batches, budget, config, validate, report, stopped, loss, patches) -> bool:
        for name, value in locals().items():
            if name != "seen":
                setattr(seen, name, value)
        seen.weights = {name: value.clone() for name, value in state.network.state_dict().items()}
        with torch.no_grad():
            for value in state.network.parameters():
                value.add_(1.0)
            for value in state.ema.parameters():
                value.mul_(0.5)
        state.step, state.seconds = 23, 45.678
        return True

    def checkpoints(folder, state, progress, seconds, labels):
        seen.checkpoint_seconds, seen.labels = seconds, labels
        return bookkeeping(folder, state, progress, seconds, labels)

    bookkeeping = fit_module.bookkeeping
    monkeypatch.setattr("volseg.api.training.fit.fit", fit)
    monkeypatch.setattr("volseg.api.training.fit.bookkeeping", checkpoints)
    return seen


def batch_dataset(seen):
    """The batches that the loop was given, in the process that makes them."""
    return seen.batches._loader.dataset.dataset


@pytest.fixture(scope="module")
def given(phantoms, tmp_path_factory):
    """A run with no default, and what its loop was called with."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        seen = recorded(monkeypatch)
        overrides = [*TINY, *(f"training.{name}={value}" for name, value in TRAINING.items())]
        seen.run = train(
            phantoms, tmp_path_factory.mktemp("runs") / "run", fold=1, folds=4, seed=9, minutes=2.5,
            overrides=overrides, device="cpu",
        )  # fmt: skip
    return seen


def test_no_setting_of_this_module_is_a_default():
    defaults = TrainingConfig().model_dump()
    assert TRAINING.keys() == defaults.keys()
    assert not [name for name in TRAINING if TRAINING[name] == defaults[name]]


def test_the_cases_trained_on_are_those_of_the_fold_and_none_of_its_validation(given):
    splits = json.loads((given.run / "splits.json").read_text())
    assert len(splits) == 4
    trained = [case.case.name for case in batch_dataset(given).cases]
    assert trained == splits[1]["train"]
    assert set(trained).isdisjoint(splits[1]["val"])
    assert splits[1]["val"]
    scored = json.loads((given.run / "validation.json").read_text())["cases"]
    assert [case["name"] for case in scored] == splits[1]["val"]
    assert read_card(given.run / "model.safetensors").training["cases"] == len(trained)


def test_the_samples_drawn_are_patches_of_the_training_cases_alone(given, monkeypatch):
    drawn = []
    dataset = batch_dataset(given)
    patch_start = type(dataset.sampler).patch_start

    def recording(self, rng, case, size, label):
        drawn.append(case.case.name)
        return patch_start(self, rng, case, size, label)

    monkeypatch.setattr(type(dataset.sampler), "patch_start", recording)
    for step in range(8):
        dataset[step]
    split = json.loads((given.run / "splits.json").read_text())[1]
    assert len(drawn) == 8 * batch_dataset(given).plan.batch_size
    assert set(drawn) == set(split["train"])


def test_every_training_setting_arrives_in_the_loop(given):
    assert given.config.model_dump() == TRAINING
    assert given.budget == Budget(seconds=150.0)
    assert given.checkpoint_seconds == 17.0
    (group,) = given.state.optimizer.param_groups
    assert (group["lr"], given.state.optimizer.weight_decay) == (0.003, 0.004)
    sampler = batch_dataset(given).sampler
    assert (sampler.oversample_foreground, sampler.seed, sampler.rank, sampler.world) == (0.6, 9, 0, 1)
    assert given.patches.sampler is sampler
    assert given.patches.fraction == 0.4
    assert isinstance(given.loss, SegmentationLoss)
    logits, target = torch.randn(1, 3, 4, 4, 4), torch.randint(0, 3, (1, 4, 4, 4))
    assert given.loss(logits, target) == SegmentationLoss("dice")(logits, target)
    assert given.batches._loader.num_workers == 0
    assert list(given.batches._loader.sampler[:2]) == [0, 1]
    assert not given.stopped()


def test_the_seed_reaches_the_weights(given):
    torch.manual_seed(9)
    expected = build_network(read_plan(given.run / "plan.yaml").network).state_dict()
    assert all(torch.equal(given.weights[name], value) for name, value in expected.items())


def test_the_model_file_has_the_average_of_the_weights(given):
    saved = load_file(given.run / "model.safetensors")
    average, raw = given.state.ema.state_dict(), given.state.network.state_dict()
    assert all(torch.equal(saved[name], value) for name, value in average.items())
    assert not any(torch.equal(saved[name], value) for name, value in raw.items())


def test_the_card_tells_how_the_model_was_trained(given, phantoms):
    card = read_card(given.run / "model.safetensors")
    index = json.loads((phantoms / "dataset.json").read_text())
    command = card.training.pop("command")
    assert card.name == f"{index['name']}-fold1"
    assert card.plan == read_plan(given.run / "plan.yaml")
    assert card.training == {
        "dataset": index["name"],
        "licence": index["licence"],
        "cases": 4,
        "fold": 1,
        "seed": 9,
        "steps": 23,
        "seconds": 45.7,
    }
    assert "--fold 1 --folds 4 --seed 9 --minutes 2.5" in command
    assert "training.ema_fraction=0.07" in command


def test_the_card_has_the_scores_and_rules_of_the_validation(given):
    card = read_card(given.run / "model.safetensors")
    document = json.loads((given.run / "validation.json").read_text())
    assert card.scores == {"cases": len(document["cases"]), **document["mean"]}
    assert {name: rule.model_dump() for name, rule in card.postprocessing.items()} == document["postprocessing"]


def test_augmentation_follows_its_configuration_and_warms_up(phantoms, tmp_path, monkeypatch):
    calls = {}

    def augmentation(plan, config, more):
        calls["augmentation"] = (config, more)
        return made(plan, config, more)

    def cropping(plan, config):
        calls["cropping"] = config
        return cropped(plan, config)

    made, cropped = fit_module.augmentation, fit_module.cropping
    monkeypatch.setattr("volseg.api.training.fit.augmentation", augmentation)
    monkeypatch.setattr("volseg.api.training.fit.cropping", cropping)
    seen = recorded(monkeypatch)
    overrides = [*TINY, "augmentation.warmup_epochs=33", "augmentation.blur=0.75"]

    def own(sample: dict[str, Any]) -> dict[str, Any]:
        return sample

    def own_loss(logits, target):
        return (logits * 0).sum() + 7

    run = train(
        phantoms, tmp_path / "run", fold="all", overrides=overrides, device="cpu", loss=own_loss, transforms=[own]
    )
    config = load_config(None, overrides).augmentation
    assert calls == {"augmentation": (config, (own,)), "cropping": config}
    assert batch_dataset(seen).warmup.epochs == 33
    assert seen.loss(torch.zeros(1, 3, 4, 4, 4), torch.zeros(1, 4, 4, 4).long()) == 7
    assert seen.budget == Budget(steps=read_plan(run / "plan.yaml").steps)
    assert seen.validate is None
    training = read_card(run / "model.safetensors").training
    assert training["custom_loss"].endswith("own_loss")
    assert training["custom_transforms"].endswith("own")
    assert training["fold"] == "all"


@pytest.mark.parametrize("override", ["training.loss=nothing", "plan.architecture=nothing"])
def test_an_unknown_name_is_reported_before_an_image_is_read(phantoms, tmp_path, monkeypatch, override):
    monkeypatch.setattr("volseg.api.training.prepare.take_fingerprint", lambda *_: pytest.fail("an image was read"))
    with pytest.raises(ConfigError, match="nothing"):
        train(phantoms, tmp_path / "run", steps=1, overrides=[*TINY, override], device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("device", "memory_gb", "planned_gb"), [("cuda", 4.0, 4.0), ("cuda", 80.0, 8.0), ("cpu", 8.0, 8.0)]
)
def test_a_plan_is_for_the_memory_of_the_device_but_not_for_more_than_most_gpus_have(
    monkeypatch, device, memory_gb, planned_gb
):
    calls = []
    monkeypatch.setattr(prepare_module, "gpu_memory_gb", lambda _: memory_gb)
    # A quarter of it is for the patches.
    monkeypatch.setattr(prepare_module, "machine_memory_gb", lambda: 4 * memory_gb)
    monkeypatch.setattr(prepare_module, "make_plan", lambda *given, **options: calls.append((given, options)))
    prepare_module.plan_for("data", "fingerprint", "choices", torch.device(device))
    expected = {"accelerated": device == "cuda", "memory_gb": planned_gb}
    assert calls == [(("data", "fingerprint", "choices"), expected)]


def test_progress_tells_every_stage(phantoms, tmp_path):
    told = []
    train(phantoms, tmp_path / "run", steps=2, overrides=TINY, device="cpu", progress=lambda *said: told.append(said))
    stages = list(dict.fromkeys(stage for stage, *_ in told))
    assert stages == ["prepare", "prepare validation", "train", "validate", "calibrate"]
    by_stage = {stage: [(done, text) for name, done, text in told if name == stage] for stage in stages}
    assert by_stage["prepare"] == [(done / 4, f"case {done} of 4") for done in (1, 2, 3, 4)]
    assert by_stage["prepare validation"] == [(1.0, "case 1 of 1")]
    assert [done for done, _ in by_stage["train"]] == [0.5, 1.0]
    assert [done for done, _ in by_stage["validate"]] == [0.0, 1.0]
    assert by_stage["validate"][-1][1].startswith(("mean foreground Dice 0.", "no label was found"))


def test_a_resumed_run_starts_its_batches_and_its_budget_where_it_ended(phantoms, tmp_path, monkeypatch):
    seen = recorded(monkeypatch)
    call = {"minutes": 2.0, "overrides": TINY, "device": "cpu", "resume": True}
    run = train(phantoms, tmp_path / "run", **call)
    before = seen.state
    train(phantoms, run, resume=True, device="cpu")
    assert seen.state is not before
    assert next(iter(seen.batches._loader.sampler)) == 23
    assert seen.budget == Budget(seconds=120.0)
    # `fit` is called with the state of the checkpoint.
    fit = "volseg.api.training.fit.fit"
    monkeypatch.setattr(fit, lambda state, *_: called.append((state.step, state.seconds)) or True)
    called: list[tuple[int, float]] = []
    train(phantoms, run, resume=True, minutes=5.0, device="cpu")
    assert called == [(23, 45.678)]


@pytest.mark.parametrize(
    ("settings", "budget"),
    [
        ({}, Budget(steps=77)),
        ({"steps": 5}, Budget(steps=5)),
        ({"minutes": 1.5}, Budget(seconds=90.0)),
    ],
)
def test_the_budget_is_that_of_the_call_else_of_the_plan(settings, budget):
    assert RunSettings(**settings).budget(77) == budget


def test_each_case_is_validated_with_its_own_reference(phantoms, tmp_path):
    plan = tiny_plan()
    seen = []

    class Bright(torch.nn.Module):
        """Says ball where the scan is bright."""

        def __init__(self) -> None:
            super().__init__()
            self.anchor = torch.nn.Parameter(torch.zeros(1))

        def forward(self, image):
            seen.append(tuple(image.shape[2:]))
            bright = image[:, :1] - 1
            return torch.cat([-bright, bright, torch.full_like(bright, -9.0)], 1)

    data = open_dataset(phantoms)
    cases = cache_cases(list(data.cases[:3]), plan, tmp_path, lambda *_: None)
    found = {}
    for chosen in ([0], [1], [2], [0, 1, 2]):
        validate = validator(plan, [cases[index] for index in chosen], torch.float32, SINGLE_PROCESS)
        found[len(chosen), chosen[0]] = validate(Bright().eval())
    alone = [found[1, index]["dice"]["ball"] for index in range(3)]
    assert len(set(alone)) == 3
    assert found[3, 0]["dice"]["ball"] == pytest.approx(np.mean(alone))
    assert set(seen) == {plan.patch_size}
