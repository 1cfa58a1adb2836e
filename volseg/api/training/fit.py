"""A run from its first step to its last: batches, training, checkpoint."""

import logging
from collections.abc import Sequence
from functools import partial
from hashlib import sha256

from torch import nn

from volseg.api.training.prepare import Run
from volseg.api.validation import validator
from volseg.data.cases.batches import AugmentationWarmup, BatchDataset, BatchLoader, lost_workers
from volseg.data.cases.cache import CachedCase, cache_cases
from volseg.data.cases.cache_key import shared_cache
from volseg.data.cases.patch_sampling import PatchSampler
from volseg.data.cases.progressive_patches import ProgressivePatches
from volseg.device import (
    batch_workers,
    expandable_memory,
    memory_errors,
    seed_torch,
)
from volseg.finetuning.kept_labels import Keeper, keep_labels
from volseg.finetuning.source import source_of
from volseg.finetuning.weights import freeze_encoder, pulled_weights, start_weights
from volseg.networks import build_network
from volseg.networks.cpu.malloc import keep_freed_memory
from volseg.networks.own import build_own
from volseg.precision import choose_precision
from volseg.progress import Progress
from volseg.training.loop import fit
from volseg.training.losses import SegmentationLoss
from volseg.training.optimisers import Muon
from volseg.training.parts import AfterStep
from volseg.training.ranks import Ranks, local_world_size
from volseg.training.run.bookkeeping import bookkeeping
from volseg.training.run.case_keys import Stamps, check_unchanged
from volseg.training.run.folder import (
    CHECKPOINT,
    remove_scores,
)
from volseg.training.signals import stop_requests
from volseg.training.state import TrainingState, has_checkpoint
from volseg.transforms import augmentation, cropping

logger = logging.getLogger(__name__)


def train_run(run: Run, ranks: Ranks, progress: Progress) -> tuple[TrainingState, bool]:
    """Train from the checkpoint, or from new weights; returns the state, and whether the run has come to its end."""
    config, budget = run.config.training, run.settings.budget(run.plan.steps)
    stamps = Stamps.of(run.training)
    training_cases, validation_cases = ranks.on_first_rank(partial(_preprocess, run, progress))
    seed_torch(run.device, run.settings.seed)
    digest = sha256("\n".join(case.stem.name for case in training_cases).encode(errors="surrogateescape")).hexdigest()
    with memory_errors(f"moving the network to {run.device}"):
        own = run.custom.network
        network = build_own(own, run.plan) if own else build_network(run.plan.network)
        _start(run, network)
        network = network.to(run.device)
        optimiser = run.custom.optimiser or Muon
        state = TrainingState(network, config, ranks, None if run.finish else digest, optimiser)
        # Of a run that goes on they are in the checkpoint.
        state.start = pulled_weights(network) if run.start and config.pull_to_model else {}
    if has_checkpoint(run.folder / CHECKPOINT):
        state.load(run.folder / CHECKPOINT, optimiser=not run.finish)
        logger.info("%s", budget.resumed(state.step, state.seconds, run.finish))
    if ranks.first:
        # They belong to the model that this run is about to replace.
        remove_scores(run.folder)
    sampler = PatchSampler(config.oversample_foreground, run.settings.seed, ranks.rank, ranks.world)
    dataset = _batches(run, training_cases, sampler)
    patches = ProgressivePatches(run.plan, sampler, config.progressive_patch_size)
    loss = SegmentationLoss(run.custom.loss or config.loss, run.plan.regions)
    dtype = choose_precision(config.precision, run.device)
    labels = [label.name for label in run.plan.labels]
    workers = batch_workers(run.device, local_world_size()) if config.workers is None else config.workers
    with (
        bookkeeping(run.folder, state, progress, config.checkpoint_seconds, labels) as record,
        lost_workers(),
        memory_errors("training"),
        keep_freed_memory(large=True),
        stop_requests() as stopped,
        expandable_memory(run.device, config.progressive_patch_size > 0),
        BatchLoader(dataset, state.step, workers, pinned=run.device.type == "cuda") as batches,
    ):
        if run.finish:
            return state, True
        callbacks = run.custom.callbacks if ranks.first else ()
        after = AfterStep(callbacks, state, record, partial(state.save, run.folder / CHECKPOINT))
        done = fit(
            state,
            batches,
            budget,
            config,
            validator(run.plan, validation_cases, dtype, ranks, run.start.labels.kept if run.start else ()),
            after,
            lambda: stopped() or state.ended,
            loss,
            patches,
        )
        if ranks.first:
            state.save(run.folder / CHECKPOINT)
            stamps.warn_of_changes(training_cases)
        # If a rank exited now, torchrun would end the others, even while rank 0 writes.
        ranks.wait()
        state.ended = ranks.any(state.ended)
    if state.ended:
        logger.info("A callback ended the run after step %d", state.step)
    return state, done or state.ended


def _start(run: Run, network: nn.Module) -> None:
    """Give a new network the weights of the model that the run starts from, and freeze what is to stay."""
    if run.start and not has_checkpoint(run.folder / CHECKPOINT):
        source = source_of(run.settings, run.start)
        start_weights(network, source.member_network(), source.card.plan, run.plan, run.start, run.settings.seed)
    if run.settings.freeze:
        freeze_encoder(network)


def _batches(run: Run, cases: Sequence[CachedCase], sampler: PatchSampler) -> BatchDataset:
    """The training batches of a run, with augmentation and its warm-up."""
    config = run.config.augmentation
    warmup = AugmentationWarmup(cropping(run.plan, config), config.warmup_epochs)
    augment = augmentation(run.plan, config, run.custom.transforms)
    return BatchDataset(cases, run.plan, sampler, augment, warmup, run.shares)


def _preprocess(run: Run, progress: Progress) -> tuple[list[CachedCase], list[CachedCase]]:
    """The preprocessed training and validation cases, from the cache where possible."""
    if run.finish:
        return [], []
    folder = shared_cache() or run.folder / "cache"
    training = cache_cases(run.training, run.plan, folder, partial(_show_case, progress, "prepare"))
    validation = cache_cases(run.validation, run.plan, folder, partial(_show_case, progress, "prepare validation"))
    check_unchanged(run.folder, training, validation)
    if run.start and run.start.labels.kept:
        dtype = choose_precision(run.config.training.precision, run.device)
        keeper = Keeper(partial(source_of, run.settings, run.start), run.start, run.plan, run.device, dtype)
        training = keep_labels(training, keeper, partial(_show_case, progress, "predict kept labels"))
    return training, validation


def _show_case(progress: Progress, stage: str, done: int, total: int) -> None:
    progress(stage, done / total, f"case {done} of {total}")
