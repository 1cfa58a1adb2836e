"""The training loop and its state: exact resumption, EMA, records, and when it stops."""

import copy
import itertools
import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from volseg.config import TrainingConfig
from volseg.errors import InputError, TrainingError
from volseg.training.budget import Budget
from volseg.training.loop import fit
from volseg.training.losses import supervised_loss
from volseg.training.optimisers import learning_rate
from volseg.training.ranks import SINGLE_PROCESS, Ranks
from volseg.training.state import TrainingState, has_checkpoint

CONFIG = TrainingConfig(learning_rate=0.1, validations=4, ema_fraction=0.1, precision="fp32")


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


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("clip", [1e-3, 1e6])
def test_each_step_has_its_rate_gradient_precision_and_ema(monkeypatch, precision, dtype, clip):
    """What the optimiser, the network and the EMA get, step by step, instead of what the log says they got."""
    config = CONFIG.model_copy(
        update={
            "gradient_clip": clip,
            "ema_fraction": 0.125,
            "warmup": 0.5,
            "weight_decay": 0.25,
            "precision": precision,
        }
    )
    state = TrainingState(network(), config)
    state.network.eval()
    steps, modes, dtypes, decays = [], [], [], []
    step, update_ema = state.optimizer.step, state.update_ema

    def gradients() -> list[torch.Tensor]:
        return [parameter.grad.clone() for parameter in state.network.parameters()]

    def expected_gradients() -> list[torch.Tensor]:
        found = copy.deepcopy(state.network)
        found.zero_grad()
        one = batch(len(steps))
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            output = found(one["image"])
        supervised_loss(output, one["label"]).backward()
        return [parameter.grad for parameter in found.parameters()]

    def recording_step(*given):
        (group,) = state.optimizer.param_groups
        steps.append((group["lr"], state.optimizer.weight_decay, gradients(), expected_gradients()))
        return step(*given)

    def recording_forward(module, _, output):
        modes.append(module.training)
        dtypes.append(output.dtype)

    monkeypatch.setattr(state.optimizer, "step", recording_step)
    monkeypatch.setattr(state, "update_ema", lambda *given: (decays.append(given), update_ema(*given)))
    hook = state.network.register_forward_hook(recording_forward)
    fit(state, batches(0), Budget(steps=4), config)
    hook.remove()
    assert [rate for rate, *_ in steps] == [learning_rate(done / 4, 0.1, 0.5) for done in range(4)]
    assert [decay for _, decay, *_ in steps] == [0.25] * 4
    for _, _, found, expected in steps:
        whole = torch.stack([gradient.norm() for gradient in expected]).norm()
        scale = min(1.0, clip / float(whole))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, scale * other, rtol=1e-3, atol=1e-7)
    assert {bool(mode) for mode in modes} == {True}
    assert set(dtypes) == {dtype}
    assert decays == [(0.125, None)] * 4


def test_in_float16_the_loss_is_scaled_and_the_gradients_are_unscaled_before_they_are_clipped(monkeypatch):
    calls = []

    class Scaler:
        def __init__(self, device, enabled):
            calls.append((device, enabled))

        def scale(self, loss):
            calls.append("scale")
            return 2.0 * loss

        def __getattr__(self, name):
            return lambda *given: calls.append(name) or (name == "step" and given[0].step())

    monkeypatch.setattr(torch.amp, "GradScaler", Scaler)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: calls.append("clip"))
    monkeypatch.setattr("volseg.training.loop.choose_precision", lambda *_: torch.float16)
    monkeypatch.setattr("volseg.training.loop.autocast", lambda *_: nullcontext())
    fit(TrainingState(network(), CONFIG), batches(0), Budget(steps=2), CONFIG)
    assert calls == [("cpu", True), *["scale", "unscale_", "clip", "step", "update"] * 2]


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_seconds_count_steps_waiting_and_validation_but_not_the_first_batch(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("volseg.training.loop.time", clock)

    def slow_batches():
        for step in itertools.count():
            clock.now += 2.0 if step else 50.0
            yield batch(step)

    def crop(given, *_):
        clock.now += 3.0
        return given

    def validate(_):
        clock.now += 10.0
        return {"foreground_dice": 0.5}

    state, records = TrainingState(network(), CONFIG), []
    state.step, state.seconds = 7, 40.0
    config = CONFIG.model_copy(update={"validations": 2})
    done = fit(state, slow_batches(), Budget(seconds=60.0), config, validate, records.append, crop_patches=crop)
    assert done
    # The budget of 60 s has 20 s left: 3 s, 2 + 3 s, 2 + 3 s; validation is half-way of the whole run, at 30 s.
    assert [record["seconds"] for record in records] == [43.0, 48.0, 53.0, 58.0, 63.0]
    assert [record["step"] for record in records] == [8, 9, 10, 11, 12]
    assert [record["waiting_share"] for record in records] == [0.0, 2 / 8, 4 / 13, 6 / 18, 8 / 23]
    assert [record["steps_per_second"] for record in records] == [1 / 3, 2 / 8, 3 / 13, 4 / 18, 5 / 23]
    assert [record["progress"] for record in records] == [seconds / 60 for seconds in (43, 48, 53, 58, 63)]
    assert (state.step, state.seconds) == (12, 63.0)
    records.clear()
    fit(TrainingState(network(), CONFIG), slow_batches(), Budget(seconds=14.0), config, validate, records.append,
        crop_patches=crop)  # fmt: skip
    assert [record["seconds"] for record in records] == [3.0, 18.0]
    assert records[1]["progress"] == 18 / 14


def test_a_checkpoint_restores_step_seconds_weights_and_moments(tmp_path):
    first = TrainingState(network(), CONFIG)
    run(first, 3)
    first.seconds = 12.5
    first.save(tmp_path)
    second = TrainingState(network(), CONFIG)
    second.load(tmp_path)
    assert (second.step, second.seconds) == (3, 12.5)
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))
    for one, other in zip(
        first.optimizer.state_dict()["state"].values(), second.optimizer.state_dict()["state"].values(), strict=True
    ):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not fit(second, batches(3), Budget(seconds=60.0), CONFIG, stopped=lambda: True)
    assert 12.5 < second.seconds < 60.0


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


@pytest.mark.parametrize("fraction", [0.0, 0.03, 0.2, 0.5])
def test_the_mean_age_of_the_weights_in_their_ema_is_a_fraction_of_the_run(fraction):
    """With weights equal to the number of the step, the EMA is the mean step."""
    state = TrainingState(network(), CONFIG)
    for steps in (200, 2000):
        while state.step < steps:
            state.step += 1
            with torch.no_grad():
                for parameter in state.network.parameters():
                    parameter.fill_(state.step)
            state.update_ema(fraction)
        mean = next(iter(state.ema.parameters())).mean().item()
        assert 1 - mean / steps == pytest.approx(fraction, abs=0.004)


def test_a_fixed_decay_follows_the_recurrence():
    state = TrainingState(network(), CONFIG)
    start = next(iter(state.ema.parameters())).clone()
    with torch.no_grad():
        for parameter in state.network.parameters():
            parameter.add_(1.0)
    # The decay rises from step to step at first.
    state.step = 1
    state.update_ema(0.03, 0.9)
    first = next(iter(state.ema.parameters())).clone()
    torch.testing.assert_close(first, start + (1 - 2 / 11))
    state.step = 1000
    state.update_ema(0.03, 0.9)
    torch.testing.assert_close(next(iter(state.ema.parameters())), 0.9 * first + 0.1 * (start + 1))


def test_the_record_says_which_labels_the_patches_held():
    records = []
    held = torch.tensor([[True, False], [True, True]])
    run(TrainingState(network(), CONFIG), 2, report=records.append, crop_patches=lambda one, *_: {**one, "held": held})
    assert [record["held"] for record in records] == [[1.0, 0.5]] * 2


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
    monkeypatch.setattr("volseg.training.state.optimiser_name", lambda _: "adamw")
    TrainingState(network(), CONFIG).save(tmp_path)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"another optimiser.*--overwrite"):
        TrainingState(network(), CONFIG).load(tmp_path)
