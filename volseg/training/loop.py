"""The training loop: flat, top to bottom. Data, validation and bookkeeping come in as plain callables."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from volseg.config import TrainingConfig
from volseg.errors import TrainingError
from volseg.precision import autocast, choose_precision
from volseg.training.losses import supervised_loss
from volseg.training.ranks import Ranks
from volseg.training.schedule import Budget, learning_rate
from volseg.training.state import TrainingState

Batch = dict[str, Tensor]
# From the network's output, the target and the ranks that share the batch to a scalar.
Loss = Callable[[Any, Tensor, Ranks], Tensor]
# From a batch, the progress of the run and the number of the step to what is trained on.
Grow = Callable[[Batch, float, int], Batch]
Validate = Callable[[torch.nn.Module], dict[str, Any]]


def fit(
    state: TrainingState,
    batches: Iterable[Batch],
    budget: Budget,
    config: TrainingConfig,
    validate: Validate | None = None,
    report: Callable[[dict[str, Any]], object] = dict,
    stopped: Callable[[], bool] = lambda: False,
    loss: Loss = supervised_loss,
    grow: Grow = lambda batch, *_: batch,
) -> bool:
    """Train `state.network` in place until the budget is spent.

    Args:
        state: where the run stands; changed in place.
        batches: from step `state.step` on; image (B, C, D, H, W) float32, and label, the target that `loss` takes.
        budget: steps or seconds; validation counts, reading the first batch does not.
        config: see `TrainingConfig`.
        validate: called with the averaged network at even shares of the run; its dict joins the next record.
        report: gets one record per step: step, seconds, progress, loss and learning_rate, steps_per_second and
            waiting_share, the share of the time that went by without a batch, since the loop began, and what validation
            said.
        stopped: asked after every step; True, on any rank, ends the loop early with the state whole.
        loss: what is minimised. The default is that of a `UNet`; a `Classifier` takes `classification_loss`.
        grow: what of a batch is trained on, such as a `volseg.data.cases.progressive_patches.ProgressivePatches`.

    Returns:
        Whether the budget is spent.

    Raises:
        TrainingError: the loss is not finite.
    """
    device = next(state.network.parameters()).device
    dtype = choose_precision(config.precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    progress = budget.progress(state.step, state.seconds)
    if progress >= 1:
        return True
    state.network.train()
    loss_of = state.ranks.parallel(LossOf(state.network, loss, state.ranks, dtype))
    source = iter(batches)
    batch = next(source)
    ranks, first_step, spent_before, waited = state.ranks, state.step, state.seconds, 0.0
    started = time.perf_counter()

    while True:
        # ---- one step
        rate = learning_rate(progress, config.learning_rate, config.warmup)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        value = _step(state, loss_of, grow(batch, progress, state.step), scaler, config, device)
        state.step += 1
        state.update_ema(config.ema_decay)

        # ---- validate at even shares of the run; the last share is the end, which is validated from written files
        state.seconds = ranks.broadcast(spent_before + time.perf_counter() - started)
        record: dict[str, Any] = {"loss": value, "learning_rate": rate}
        last, progress = progress, budget.progress(state.step, state.seconds)
        if (
            validate
            and math.floor(progress * config.validations) > math.floor(last * config.validations)
            and progress < 1
        ):
            record |= validate(state.ema)
            state.seconds = ranks.broadcast(spent_before + time.perf_counter() - started)
            progress = budget.progress(state.step, state.seconds)

        # ---- log, stop or go on
        elapsed = time.perf_counter() - started
        record |= {"steps_per_second": (state.step - first_step) / elapsed, "waiting_share": waited / elapsed}
        report({"step": state.step, "seconds": round(state.seconds, 3), "progress": progress, **record})
        if progress >= 1 or ranks.any(stopped()):
            return progress >= 1
        idle = time.perf_counter()
        batch = next(source)
        waited += time.perf_counter() - idle


class LossOf(torch.nn.Module):
    """What is minimised, as one module: what its output depends on are the weights that get a gradient."""

    def __init__(self, network: torch.nn.Module, loss: Loss, ranks: Ranks, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.loss, self.ranks, self.dtype = network, loss, ranks, dtype

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """The loss of the whole batch, of which each rank has its own part."""
        with autocast(image.device, self.dtype):
            outputs = self.network(image)
        return self.loss(outputs, target, self.ranks)


def _step(
    state: TrainingState,
    loss_of: torch.nn.Module,
    batch: Batch,
    scaler: torch.amp.GradScaler,
    config: TrainingConfig,
    device: torch.device,
) -> float:
    """One optimiser step; the loss before it."""
    image = batch["image"].to(device, non_blocking=True)
    target = batch["label"].to(device, non_blocking=True)
    loss: Tensor = loss_of(image, target)
    state.optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    # Asked only now: a GPU then has the backward pass to compute while this waits for the loss.
    value = loss.item()
    if not math.isfinite(value):
        raise TrainingError(
            f"The loss became {value} at step {state.step + 1}. Lower training.learning_rate "
            f"(now {config.learning_rate}) or use --set training.precision=fp32, and start again."
        )
    scaler.unscale_(state.optimizer)
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), config.gradient_clip)
    scaler.step(state.optimizer)
    scaler.update()
    return value
