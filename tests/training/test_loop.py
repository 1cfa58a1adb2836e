"""The training loop and its state: exact resumption, EMA, records, and when it stops."""

import itertools
import math

import pytest
import torch
from torch import nn

from volseg.config import TrainingConfig
from volseg.errors import InputError, TrainingError
from volseg.training.loop import fit
from volseg.training.ranks import SINGLE_PROCESS, Ranks
from volseg.training.schedule import Budget, learning_rate
from volseg.training.state import TrainingState, has_checkpoint

CONFIG = TrainingConfig(learning_rate=0.1, validations=4, ema_decay=0.9, precision="fp32")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 2, 1))


def batch(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    image = torch.randn(2, 1, 4, 6, 8, generator=generator)
    return {"image": image, "label": (image[:, 0] > 0).to(torch.uint8)}


def batches(start: int):
    step = start
    while True:
        yield batch(step)
        step += 1


def run(state: TrainingState, steps: int, **options) -> bool:
    return fit(state, batches(state.step), Budget(steps=steps), CONFIG, **options)


def weights(state: TrainingState) -> list[torch.Tensor]:
    return [*state.network.state_dict().values(), *state.ema.state_dict().values()]


def test_it_learns_a_threshold():
    losses = []
    run(TrainingState(network(), CONFIG), 60, report=lambda record: losses.append(record["loss"]))
    assert losses[-1] < 0.5 * losses[0]


def test_it_takes_any_loss_of_the_output_and_the_label():
    def loss(output: torch.Tensor, label: torch.Tensor, _: Ranks = SINGLE_PROCESS) -> torch.Tensor:
        return (output[:, 0] - 2.0 * label).square().mean()

    with torch.no_grad():
        first = loss(network()(batch(0)["image"]), batch(0)["label"]).item()
    losses = []
    run(TrainingState(network(), CONFIG), 60, report=lambda record: losses.append(record["loss"]), loss=loss)
    assert losses[0] == pytest.approx(first, rel=1e-5)
    assert losses[-1] < 0.5 * first


@pytest.mark.parametrize("cut", [1, 7, 19])
def test_a_resumed_run_gives_the_same_bits_as_an_uninterrupted_one(tmp_path, cut):
    uninterrupted = TrainingState(network(), CONFIG)
    run(uninterrupted, 20)
    first = TrainingState(network(), CONFIG)
    assert not run(first, 20, stopped=lambda: first.step == cut)
    first.save(tmp_path)
    assert has_checkpoint(tmp_path)
    second = TrainingState(network(), CONFIG)
    second.load(tmp_path)
    assert second.step == cut
    assert run(second, 20)
    assert all(torch.equal(a, b) for a, b in zip(weights(uninterrupted), weights(second), strict=True))


def test_it_trains_on_the_cropped_batch():
    calls = []

    def crop(batch, progress, step):
        calls.append((progress, step))
        return {key: value[..., : 2 + 6 * (progress >= 0.5)] for key, value in batch.items()}

    by_loop, by_hand = TrainingState(network(), CONFIG), TrainingState(network(), CONFIG)
    run(by_loop, 4, crop_patches=crop)
    assert calls == [(0.0, 0), (0.25, 1), (0.5, 2), (0.75, 3)]
    cropped = (crop(batch(step), step / 4, step) for step in range(4))
    fit(by_hand, cropped, Budget(steps=4), CONFIG)
    assert all(torch.equal(a, b) for a, b in zip(weights(by_loop), weights(by_hand), strict=True))
    run(full := TrainingState(network(), CONFIG), 4)
    assert not torch.equal(weights(full)[0], weights(by_hand)[0])


def test_records_hold_step_learning_rate_progress_and_seconds():
    records = []
    run(TrainingState(network(), CONFIG), 10, report=records.append)
    assert [record["step"] for record in records] == list(range(1, 11))
    assert records[4]["learning_rate"] == learning_rate(0.4, CONFIG.learning_rate, CONFIG.warmup)
    assert records[-1]["progress"] == 1.0
    assert all(later["seconds"] >= sooner["seconds"] for sooner, later in itertools.pairwise(records))


def test_validation_is_evenly_spaced_and_gets_the_ema():
    state, seen = TrainingState(network(), CONFIG), []

    def validate(model):
        assert model is state.ema
        seen.append(state.step)
        return {"foreground_dice": 0.5}

    records = []
    run(state, 20, validate=validate, report=records.append)
    assert seen == [5, 10, 15]
    assert [record["step"] for record in records if "foreground_dice" in record] == seen


def test_no_step_is_taken_after_the_budget_is_spent():
    state = TrainingState(network(), CONFIG)
    state.step = 5
    before = [value.clone() for value in weights(state)]
    assert run(state, 5)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(state), strict=True))


def test_the_wall_clock_budget_ends_the_run():
    state = TrainingState(network(), CONFIG)
    assert fit(state, batches(0), Budget(seconds=0.3), CONFIG)
    assert state.step > 1
    assert 0.3 <= state.seconds < 3.0


def test_the_ema_follows_the_recurrence():
    state = TrainingState(network(), CONFIG)
    start = next(iter(state.ema.parameters())).clone()
    state.step = 1
    with torch.no_grad():
        for parameter in state.network.parameters():
            parameter.add_(1.0)
    state.update_ema(0.9)
    moved = next(iter(state.ema.parameters()))
    torch.testing.assert_close(moved, start + (1 - 2 / 11))


def test_a_nan_loss_is_an_error_that_leaves_the_weights_unchanged():
    state = TrainingState(network(), CONFIG)
    bad = batch(0)
    bad["image"][0, 0, 0, 0, 0] = math.nan
    with pytest.raises(TrainingError, match="step 1"):
        fit(state, iter([bad]), Budget(steps=5), CONFIG)
    assert all(torch.isfinite(value).all() for value in weights(state))


def test_a_corrupt_checkpoint_is_rejected(tmp_path):
    TrainingState(network(), CONFIG).save(tmp_path)
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="--overwrite"):
        TrainingState(network(), CONFIG).load(tmp_path)


def test_a_checkpoint_of_another_optimiser_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr("volseg.training.state.OPTIMIZER", "adamw")
    TrainingState(network(), CONFIG).save(tmp_path)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"another optimiser.*--overwrite"):
        TrainingState(network(), CONFIG).load(tmp_path)
