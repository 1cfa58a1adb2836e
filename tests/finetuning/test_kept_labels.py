"""Labels that a dataset lacks are kept by the confident predictions of the model that a run starts from."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.pipeline import TINY, tiny_plan
from volseg import train
from volseg.api.training import fit as fit_module
from volseg.config import IGNORED, Label
from volseg.data.cases.cache import cache_cases
from volseg.data.cases.dataset import open_dataset
from volseg.errors import ResourceError
from volseg.finetuning.kept_labels import Keeper, keep_labels
from volseg.finetuning.start import Match, Start
from volseg.modelfile import read_card

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = {"device": "cpu", "folds": 2}
CLEAR, UNSURE = 1.0, 0.2


class Threshold(torch.nn.Module):
    """The kept label where the scan is above `CLEAR`, nothing below `UNSURE`, and in between undecided."""

    def __init__(self):
        super().__init__()
        self.zero = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        kept = torch.where(x > CLEAR, 20.0, torch.where(x < UNSURE, -20.0, 0.0))
        return torch.cat([torch.zeros_like(x), torch.full_like(x, -40.0), kept], dim=1) + self.zero


@pytest.fixture
def world(phantoms, tmp_path):
    """Cached cases, a keeper of the label `tissue`, and how often its model was opened."""
    labels = (Label(name="ball", value=1), Label(name="rod", value=2), Label(name="tissue", value=3))
    plan = tiny_plan(labels=labels, network=tiny_plan().network.model_copy(update={"classes": 4}))
    model = tiny_plan(labels=(Label(name="ball", value=1), Label(name="tissue", value=2)))
    cases = cache_cases(open_dataset(phantoms).cases[:2], plan, tmp_path / "cache")
    found = SimpleNamespace(opened=0, plan=plan, cases=cases)

    def find():
        found.opened += 1
        return SimpleNamespace(card=SimpleNamespace(plan=model), network=lambda: Threshold().eval())

    def keeper(sha256=64 * "a"):
        match = Match(taken={"ball": "ball", "rod": None}, kept=("tissue",))
        start = Start(name="m", sha256=sha256, labels=match, channels=Match(taken={"MRI": "MRI"}))
        return Keeper(find, start, plan, torch.device("cpu"), torch.float32)

    found.keeper = keeper
    return found


def test_only_what_the_reference_calls_background_becomes_a_kept_label_or_is_ignored(world):
    for plain, kept in zip(world.cases, keep_labels(world.cases, world.keeper()), strict=True):
        scan, reference, merged = plain.image[...][0], plain.label[...][0], kept.label[...][0]
        assert np.array_equal(merged[reference > 0], reference[reference > 0])
        background = reference == 0
        # Windows are blended, so the borders of both are left out by the network's own thresholds alone.
        assert (merged[background & (scan > CLEAR)] == 3).all()
        assert (merged[background & (scan < UNSURE)] == 0).all()
        assert (merged[background & (scan > UNSURE) & (scan < CLEAR)] == IGNORED).all()
        assert {-1, 0, 1, 2, 3} == set(np.unique(merged))


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "conv"), reason="this torch has no such setting")
def test_they_are_predicted_in_exact_float32_whatever_the_program_around_has_set(world, monkeypatch):
    setting, seen, forward = torch.backends.mkldnn.conv, [], Threshold.forward
    monkeypatch.setattr(Threshold, "forward", lambda *x: seen.append(setting.fp32_precision) or forward(*x))
    try:
        setting.fp32_precision = "bf16"
        keep_labels(world.cases, world.keeper())
        assert setting.fp32_precision == "bf16"
    finally:
        setting.fp32_precision = "none"
    assert set(seen) == {"ieee"}


def test_patches_are_drawn_from_the_kept_labels_and_not_around_ignored_voxels(world):
    kept, _ = keep_labels(world.cases, world.keeper())
    assert kept.classes == (1, 2, 3)
    merged = kept.label[...][0]
    assert (merged[tuple(kept.foreground(3).T)] == 3).all()
    assert (merged[tuple(kept.foreground(2).T)] == 2).all()
    assert (merged[tuple(kept.annotated.T)] != IGNORED).all()
    assert np.array_equal(kept.image[...], world.cases[0].image[...])


def test_the_cache_is_of_the_model_and_what_is_in_it_is_not_predicted_again(world):
    first = keep_labels(world.cases, world.keeper())
    assert keep_labels(world.cases, world.keeper()) == first
    assert world.opened == 1
    keep_labels(world.cases, world.keeper(64 * "b"))
    assert world.opened == 2
    assert [case.label.shape for case in cache_cases([one.case for one in world.cases], world.plan,
                                                     world.cases[0].stem.parent)]  # fmt: skip
    assert (world.cases[0].label[...] >= 0).all()


def test_a_damaged_file_is_predicted_again_by_the_next_run(world):
    kept, _ = keep_labels(world.cases, world.keeper())
    before = kept.label[...].copy()
    path = kept.kept.with_name(f"{kept.kept.name}.label.blocks")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ResourceError, match=r"its kept labels in the cache cannot be read .* Resume with --resume"):
        kept.label[...]
    again, _ = keep_labels(world.cases, world.keeper())
    assert world.opened == 2
    assert np.array_equal(again.label[...], before)


def test_a_run_that_keeps_labels_is_scored_on_its_own_labels_and_resumes_without_the_model(
    phantoms, renamed, tmp_path, monkeypatch
):
    source = train(phantoms, tmp_path / "source", steps=3, **QUICK, overrides=[*TINY, "training.validations=0"])
    model = (source / "model.safetensors").rename(tmp_path / "m.safetensors")
    data = renamed(labels={"0": "background", "1": "ball", "2": "tail"})
    seen = []
    original = fit_module.fit

    def fit(state, batches, *others):
        dataset = batches._loader.dataset.dataset
        seen.append([case.label[...] for case in dataset.cases])
        return original(state, batches, *others)

    monkeypatch.setattr(fit_module, "fit", fit)
    overrides = ["training.validations=2", "training.workers=0"]
    run = train(data, tmp_path / "run", from_model=model, keep_labels=True, steps=4, **QUICK, overrides=overrides)
    card = read_card(run / "model.safetensors")
    assert [(label.name, label.value) for label in card.plan.labels] == [("ball", 1), ("tail", 2), ("rod", 3)]
    assert card.training["from"][0]["labels"]["kept"] == ["rod"]
    assert "--keep-labels" in card.training["command"]
    scored = json.loads((run / "validation.json").read_text())
    assert list(scored["mean"]["labels"]) == ["ball", "tail"]
    # A kept label is no sign of wrong labels.
    assert not [one for one in scored["warnings"] if "Values in predictions" in one]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [list(one["dice"]) for one in records if "dice" in one] == [["ball", "tail"]]
    model.unlink()
    train(data, run, resume=True, steps=6, device="cpu")
    assert len(seen) == 2
    assert all(np.array_equal(one, other) for one, other in zip(*seen, strict=True))
    assert all(one.dtype == np.int16 for one in seen[0])
