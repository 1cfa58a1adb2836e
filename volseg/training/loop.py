"""The training loop: flat, top to bottom. Data, validation and bookkeeping come in as plain callables."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from volseg.config import TrainingConfig
from volseg.errors import TrainingError
from volseg.precision import autocast, choose_precision, exact_float32, tuned_convolutions
from volseg.training.budget import Budget
from volseg.training.losses import supervised_loss
from volseg.training.optimisers import learning_rate
from volseg.training.ranks import Ranks
from volseg.training.state import TrainingState

Batch = dict[str, Tensor]
# (output of the network, target, ranks that share the batch) -> scalar; with partial labels a fourth argument, the
# batch's "annotated".
Loss = Callable[..., Tensor]
# (batch, progress of the run, step) -> the batch to train on, cropped to the current patch size.
CropPatches = Callable[[Batch, float, int], Batch]
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
    crop_patches: CropPatches = lambda batch, *_: batch,
) -> bool:
    """Train `state.network` in place until the budget is spent.

    Args:
        state: of the run; changed in place.
        batches: starting at step `state.step`; "image" (B, C, D, H, W) float32, and "label", the target of `loss`; with
            partial labels also "annotated" (B, labels) bool, which `loss` gets as its fourth argument.
        budget: steps or seconds; seconds include validation, but not reading the first batch.
        config: see `TrainingConfig`.
        validate: called with the EMA network, evenly spaced over the run; its dict is added to the record of the step.
        report: called with one record per step: step, seconds, progress, loss, learning_rate, steps_per_second,
            waiting_share (fraction of the time since the loop started that was spent waiting for batches), held (for
            each label, the fraction of this rank's patches that have it, if the batch says so), and the values from
            `validate`.
        stopped: called after every step; True on any rank ends the loop early, with a consistent state.
        loss: the loss to minimise. The default is for a `UNet`; use `classification_loss` for a `Classifier`.
        crop_patches: crops each batch to the current patch size, for progressive patch size; see
            `volseg.data.cases.progressive_patches.ProgressivePatches`. Default: full patches.

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
    network_loss = state.ranks.parallel(NetworkLoss(state.network, loss, state.ranks, dtype))
    source = iter(batches)
    batch = next(source)
    ranks, first_step, spent_before, waited = state.ranks, state.step, state.seconds, 0.0
    started = time.perf_counter()

    while True:
        # ---- one step
        rate = learning_rate(progress, config.learning_rate, config.warmup)
        for group, scale in zip(state.optimizer.param_groups, state.scales, strict=True):
            group["lr"] = rate * scale
        full = batch["image"].shape
        batch = crop_patches(batch, progress, state.step)
        with exact_float32(device, dtype), tuned_convolutions(device, fixed=batch["image"].shape == full):
            value = _step(state, network_loss, batch, scaler, config, device)
        state.pull_to_start(rate * config.pull_to_model)
        state.step += 1
        state.update_ema(config.ema_fraction, config.ema_decay)

        # ---- validate, evenly spaced over the run; at its end the written files are validated instead
        state.seconds = ranks.broadcast(spent_before + time.perf_counter() - started)
        record: dict[str, Any] = {"loss": value, "learning_rate": rate}
        if "held" in batch:
            record["held"] = batch["held"].float().mean(0).tolist()
        last, progress = progress, budget.progress(state.step, state.seconds)
        if (
            validate
            and math.floor(progress * config.validations) > math.floor(last * config.validations)
            and progress < 1
        ):
            record |= validate(state.ema)
            state.seconds = ranks.broadcast(spent_before + time.perf_counter() - started)
            progress = budget.progress(state.step, state.seconds)

        # ---- log, then stop or continue
        elapsed = time.perf_counter() - started
        record |= {"steps_per_second": (state.step - first_step) / elapsed, "waiting_share": waited / elapsed}
        report({"step": state.step, "seconds": round(state.seconds, 3), "progress": progress, **record})
        if progress >= 1 or ranks.any(stopped()):
            return progress >= 1
        idle = time.perf_counter()
        batch = next(source)
        waited += time.perf_counter() - idle


class NetworkLoss(torch.nn.Module):
    """The network and its loss as one module, whose only output is the loss, as `Ranks.parallel` requires."""

    def __init__(self, network: torch.nn.Module, loss: Loss, ranks: Ranks, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.loss, self.ranks, self.dtype = network, loss, ranks, dtype

    def forward(self, image: Tensor, target: Tensor, *partial: Tensor) -> Tensor:
        """Loss over the global batch (each rank holds a shard)."""
        with autocast(image.device, self.dtype):
            outputs = self.network(image)
        return self.loss(outputs, target, self.ranks, *partial)


def _step(
    state: TrainingState,
    network_loss: torch.nn.Module,
    batch: Batch,
    scaler: torch.amp.GradScaler,
    config: TrainingConfig,
    device: torch.device,
) -> float:
    """One optimiser step; returns the loss before it."""
    image = batch["image"].to(device, non_blocking=True)
    target = batch["label"].to(device, non_blocking=True)
    partial = [batch["annotated"].to(device, non_blocking=True)] if "annotated" in batch else []
    loss: Tensor = network_loss(image, target, *partial)
    state.optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    # Read only now: a GPU computes the backward pass while the CPU waits for the loss.
    value = loss.item()
    if not math.isfinite(value):
        raise TrainingError(
            f"The loss became {value} at step {state.step + 1}. Lower training.learning_rate "
            f"(now {config.learning_rate}) or use --set training.precision=fp32, and restart the run."
        )
    scaler.unscale_(state.optimizer)
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), config.gradient_clip)
    scaler.step(state.optimizer)
    scaler.update()
    return value
