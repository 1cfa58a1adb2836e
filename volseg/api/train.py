"""Training: a dataset in, a run folder out."""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache, partial
from hashlib import sha256
from pathlib import Path

import torch

from volseg.api.validation import validate_from_files, validator
from volseg.config import Config, Plan, PlanChoices, load_config
from volseg.data.cases.batches import AugmentationWarmup, BatchDataset, BatchLoader, check_shared, lost_workers
from volseg.data.cases.cache import CachedCase, cache_cases
from volseg.data.cases.cache_key import shared_cache
from volseg.data.cases.dataset import Dataset, TrainingCase, folds_in_files, grouping_of, open_dataset
from volseg.data.cases.patch_sampling import PatchSampler
from volseg.data.cases.progressive_patches import ProgressivePatches
from volseg.data.cases.workers import require_main_process
from volseg.data.folds import Folds, choose_fold
from volseg.device import (
    batch_workers,
    choose_device,
    gpu_memory_gb,
    machine_memory_gb,
    memory_errors,
    random_numbers_kept,
    seed_torch,
)
from volseg.errors import DatasetError, Stopped
from volseg.files import given_path, remove_leftovers, write_json, write_text
from volseg.modelfile import ModelCard, save_model
from volseg.networks import build_network, find_network
from volseg.networks.cpu.malloc import keep_freed_memory
from volseg.planning.fingerprint import Fingerprint, take_fingerprint
from volseg.planning.planner import GPU_MEMORY_GB, make_plan, plan_text, read_plan
from volseg.planning.summary import summary
from volseg.precision import choose_precision
from volseg.progress import Progress, silent
from volseg.report.run_report import write_run_report
from volseg.training.bookkeeping import bookkeeping, run_log
from volseg.training.case_keys import Stamps, check_unchanged, check_validation, require_same_labels
from volseg.training.loop import fit
from volseg.training.losses import PlainLoss, SegmentationLoss
from volseg.training.ranks import Ranks, join_process_group, local_device, local_world_size
from volseg.training.run_folder import (
    CHECKPOINT,
    configure_run,
    disk_errors,
    interrupted,
    is_run,
    lock_run_folder,
    remove_scores,
    run_folds,
    start_run,
)
from volseg.training.run_settings import Custom, RunSettings
from volseg.training.signals import stop_requests
from volseg.training.state import TrainingState, has_checkpoint
from volseg.transforms import Transform, augmentation, cropping
from volseg.version import __version__

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A run that is ready to train."""

    folder: Path
    settings: RunSettings
    config: Config
    data: Dataset
    plan: Plan
    device: torch.device
    training: list[TrainingCase]
    validation: list[TrainingCase]
    folds: Folds
    custom: Custom = field(default_factory=Custom)
    finish: bool = False


def train(
    dataset: str | Path,
    output: str | Path,
    *,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    fold: int | str | None = None,
    folds: int | None = None,
    splits: str | Path | None = None,
    seed: int | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    finish: bool = False,
    device: str = "auto",
    progress: Progress = silent,
    loss: PlainLoss | None = None,
    transforms: Sequence[Transform] = (),
) -> Path:
    """Train a network on a dataset; the run folder holds the model, its validation scores and a report.

    Processes started by torchrun share each batch and the validation, and rank 0 writes the files. The run equals that
    of a single process, up to rounding. All processes need access to the same folders.

    Args:
        dataset: a Medical Segmentation Decathlon folder, an nnU-Net v2 raw folder, or one with images/ and labels/.
        output: the run folder; must not exist unless `resume` or `overwrite`.
        config: a YAML file, see `volseg.config.Config`.
        overrides: "key=value" changes to it.
        fold: 0 to folds - 1, or "all" to train on every case and validate on none. Default 0.
        folds: number of folds. Default 5.
        splits: a JSON file [{"train": names, "val": names}, ...], used instead of the folds that the dataset states.
        seed: of the weights and of all random samples. Default 0.
        minutes: wall-clock budget from the first step to the last; a resumed run spends what is left of it.
        steps: exact number of optimiser steps instead. Without either: the plan's.
        resume: resume the run in `output`, or start it if there is none.
        overwrite: replace the run in `output`.
        finish: end the run in `output` now: no further step, but model, scores and report of what its checkpoint holds.
        device: auto, cpu, cuda, cuda:N or mps.
        progress: called with the fraction of the run that is done.
        loss: a function of (logits, target) to a scalar instead of `training.loss`, see
            `volseg.losses.SegmentationLoss`. A resumed run needs it again.
        transforms: MONAI dictionary transforms of "image" (C, D, H, W) and "label" (1, D, H, W), applied to each
            augmented patch after volseg's own; random ones have to be `monai.transforms.Randomizable`.

    Returns:
        The run folder.

    Raises:
        Stopped: Ctrl-C or SIGTERM; the checkpoint is on disk.
        VolsegError: see `volseg.errors`.
    """
    require_main_process()
    custom = Custom.checked(loss, transforms)
    file = None if splits is None else given_path(splits)
    budget = {"minutes": minutes, "steps": steps}
    settings = {"fold": fold, "folds": folds, "splits": file and file.name, "seed": seed, **budget}
    folder = Path(output)
    torch_device = local_device(device)
    with (
        random_numbers_kept(torch_device),
        join_process_group(torch_device) as ranks,
        disk_errors(folder),
        ExitStack() as locks,
    ):

        @cache
        def lock() -> None:
            locks.enter_context(lock_run_folder(folder, finish))

        def prepare() -> Run:
            if is_run(folder):
                lock()
            again = resume or finish
            configured = configure_run(folder, config, overrides, settings, again, overwrite, finish)
            data = replace(open_dataset(Path(dataset)), splits=file)
            return _prepare(folder, *configured, data, torch_device, ranks.world, again, lock)

        run = replace(ranks.on_first_rank(prepare), device=torch_device, custom=custom, finish=finish)
        with run_log(folder, ranks.first):
            logger.info("volseg %s on %s: %s, %d cases to train on, %d to validate on", __version__, torch_device,
                        run.data.name, len(run.training), len(run.validation))  # fmt: skip
            logger.info("Fold %s of %d: %s", run.settings.fold, len(run.folds.splits), run.folds.source)
            try:
                state, done = _fit(run, ranks, progress if ranks.first else silent)
                if not done:
                    raise KeyboardInterrupt
                _finish(run, state, progress if ranks.first else silent)
            except KeyboardInterrupt as stop:
                raise Stopped(interrupted(folder, dataset, ranks.world)) from stop
    return folder


def plan_dataset(
    dataset: str | Path, config: str | Path | None = None, overrides: Sequence[str] = (), device: str = "auto"
) -> str:
    """The training plan for all of a dataset as YAML, with the reason for each value as a comment.

    Args:
        dataset: as for `train`.
        config: a YAML file, see `volseg.config.Config`.
        overrides: "key=value" changes to it.
        device: the device to plan for, as for `train`.

    Raises:
        VolsegError: the dataset or the configuration cannot be used; see `volseg.errors`.
    """
    choices = load_config(config, overrides).plan
    data = open_dataset(Path(dataset))
    stated = folds_in_files(data)
    logger.info("Folds: %s", f"{len(stated.splits)}, {stated.source}" if stated else grouping_of(data).words)
    fingerprint = take_fingerprint(data, shared_cache())
    plan, reasons = _plan(data, fingerprint, choices, choose_device(device))
    return plan_text(plan, reasons, summary(fingerprint))


def _plan(
    data: Dataset, fingerprint: Fingerprint, choices: PlanChoices, device: torch.device
) -> tuple[Plan, dict[str, str]]:
    """The plan for a device, and the reason for each value."""
    # On a CPU the patches need about twice what they are planned with, and as much goes to the program and its workers.
    own = gpu_memory_gb(device) if device.type == "cuda" else machine_memory_gb() / 4
    memory = min(GPU_MEMORY_GB, own)
    return make_plan(data, fingerprint, choices, accelerated=device.type != "cpu", memory_gb=memory)


def _prepare(
    folder: Path,
    settings: RunSettings,
    config: Config,
    data: Dataset,
    device: torch.device,
    world: int,
    resume: bool,
    lock: Callable[[], None],
) -> Run:
    """Split and plan, or read both from the run folder; nothing is written before the dataset has passed all checks.

    The plan is made from the cases of all folds, so that all folds have the same plan and can become one ensemble.
    """
    # Report unknown names before the dataset is read.
    SegmentationLoss(config.training.loss)
    find_network(config.plan.architecture or "unet")
    has_plan = resume and (folder / "plan.yaml").exists()
    if has_plan:
        if data.problems:
            raise DatasetError(data.name, data.problems)
        remove_leftovers(folder)
    folds = run_folds(folder if has_plan else None, settings, data)
    split = choose_fold(folds, settings.fold)
    by_name = {case.name: case for case in data.cases}
    training, validation = ([by_name[name] for name in split[half]] for half in ("train", "val"))
    if has_plan:
        plan = read_plan(folder / "plan.yaml")
        require_same_labels(data, plan)
        check_shared(plan, world)
    else:
        used = {name for one in folds.splits for half in one.values() for name in half}
        data_used = replace(data, cases=tuple(case for case in data.cases if case.name in used))
        fingerprint = take_fingerprint(data_used, shared_cache())
        plan, reasons = _plan(data, fingerprint, config.plan, device)
        check_shared(plan, world)
        lock()
        start_run(folder, settings, config)
        write_json(folder / "splits.json", folds.splits)
        write_text(folder / "plan.yaml", plan_text(plan, reasons, summary(fingerprint)))
        for label in data.labels.stored:
            if not any(case.volumes_ml[label] for case in fingerprint.cases):
                logger.warning("Label %s occurs in no case, so it cannot be learned", label)
    return Run(folder, settings, config, data, plan, device, training, validation, folds)


def _fit(run: Run, ranks: Ranks, progress: Progress) -> tuple[TrainingState, bool]:
    """Train from the checkpoint, or from new weights; returns the state, and whether the budget is spent."""
    config, budget = run.config.training, run.settings.budget(run.plan.steps)
    stamps = Stamps.of(run.training)
    training_cases, validation_cases = ranks.on_first_rank(partial(_preprocess, run, progress))
    seed_torch(run.device, run.settings.seed)
    digest = sha256("\n".join(case.stem.name for case in training_cases).encode(errors="surrogateescape")).hexdigest()
    with memory_errors(f"moving the network to {run.device}"):
        network = build_network(run.plan.network).to(run.device)
        state = TrainingState(network, config, ranks, None if run.finish else digest)
    if has_checkpoint(run.folder / CHECKPOINT):
        state.load(run.folder / CHECKPOINT)
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
        BatchLoader(dataset, state.step, workers) as batches,
    ):
        if run.finish:
            return state, True
        done = fit(
            state,
            batches,
            budget,
            config,
            validator(run.plan, validation_cases, dtype, ranks),
            record,
            stopped,
            loss,
            patches,
        )
        if ranks.first:
            state.save(run.folder / CHECKPOINT)
            stamps.warn_of_changes(training_cases)
        # If a rank exited now, torchrun would end the others, even while rank 0 writes.
        ranks.wait()
    return state, done


def _batches(run: Run, cases: Sequence[CachedCase], sampler: PatchSampler) -> BatchDataset:
    """The training batches of a run, with augmentation and its warm-up."""
    config = run.config.augmentation
    warmup = AugmentationWarmup(cropping(run.plan, config), config.warmup_epochs)
    return BatchDataset(cases, run.plan, sampler, augmentation(run.plan, config, run.custom.transforms), warmup)


def _preprocess(run: Run, progress: Progress) -> tuple[list[CachedCase], list[CachedCase]]:
    """The preprocessed training and validation cases, from the cache where possible."""
    if run.finish:
        return [], []
    folder = shared_cache() or run.folder / "cache"
    training = cache_cases(run.training, run.plan, folder, partial(_show_case, progress, "prepare"))
    validation = cache_cases(run.validation, run.plan, folder, partial(_show_case, progress, "prepare validation"))
    check_unchanged(run.folder, training, validation)
    return training, validation


def _finish(run: Run, state: TrainingState, progress: Progress) -> None:
    """Write the model, choose its postprocessing, score it on the validation cases, and write the report."""
    weights = state.ema.state_dict()
    card = ModelCard(
        name=f"{run.data.name}-fold{run.settings.fold}",
        plan=run.plan,
        training={
            "command": run.settings.command(run.data.name, run.config),
            "dataset": run.data.name,
            "licence": run.data.licence,
            "cases": len(run.training),
            "fold": run.settings.fold,
            "seed": run.settings.seed,
            "steps": state.step,
            "seconds": round(state.seconds, 1),
            **run.settings.ended(run.plan.steps, state.step, state.seconds, run.finish),
            **run.custom.described(),
        },
    )
    model, ranks = run.folder / "model.safetensors", state.ranks
    if ranks.first:
        save_model(model, card, weights)
    ranks.wait()
    if run.validation:
        ranks.on_first_rank(partial(check_validation, run.folder, run.validation, run.plan))
        precision = run.config.training.precision
        found = validate_from_files(
            model, run.data, run.validation, run.folder, str(run.device), precision, progress, ranks
        )
        if ranks.first:
            save_model(model, card.model_copy(update=found), weights)
    if ranks.first:
        write_run_report(run.folder)
    logger.info("Finished after %d steps and %.0f seconds: %s", state.step, state.seconds, model)


def _show_case(progress: Progress, stage: str, done: int, total: int) -> None:
    progress(stage, done / total, f"case {done} of {total}")
