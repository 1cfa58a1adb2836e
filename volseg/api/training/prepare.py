"""A run before its first step: cases, folds and plan, read from its folder or made."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from volseg.config import CUSTOM, Config, Plan, PlanChoices, TrainingConfig
from volseg.data.cases.batches import check_shared
from volseg.data.cases.cache_key import shared_cache
from volseg.data.cases.dataset import Dataset, TrainingCase
from volseg.data.cases.progressive_patches import patch_sizes
from volseg.data.cases.sources.shares import shares_of
from volseg.data.folds import Folds, choose_fold
from volseg.data.joining import datasets_in_words
from volseg.device import (
    gpu_memory_gb,
    machine_memory_gb,
    memory_errors,
    random_numbers_kept,
)
from volseg.errors import DatasetError, UsageError
from volseg.files import remove_leftovers, write_json, write_text
from volseg.finetuning.planning import plan_from
from volseg.finetuning.source import find_source
from volseg.finetuning.start import FILE_NAME as START
from volseg.finetuning.start import Start, read_start
from volseg.networks import build_network, find_network
from volseg.networks.own import build_own, check_own
from volseg.planning.commented import plan_text
from volseg.planning.fingerprint import Fingerprint, take_fingerprint
from volseg.planning.planner import GPU_MEMORY_GB, make_plan, read_plan
from volseg.planning.summary import summary
from volseg.precision import choose_precision
from volseg.training.losses import SegmentationLoss
from volseg.training.moments import build_optimiser
from volseg.training.parts import Custom
from volseg.training.run.case_keys import require_annotated, require_same_datasets, require_same_labels
from volseg.training.run.folder import (
    run_folds,
    start_run,
)
from volseg.training.run.settings import RunSettings

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
    start: Start | None = None
    custom: Custom = field(default_factory=Custom)
    finish: bool = False
    shares: dict[str, float] | None = None


def plan_for(
    data: Dataset, fingerprint: Fingerprint, choices: PlanChoices, device: torch.device
) -> tuple[Plan, dict[str, str]]:
    """The plan for a device, and the reason for each value."""
    return make_plan(data, fingerprint, choices, **_device_limits(device))


def _device_limits(device: torch.device) -> dict[str, Any]:
    """What a plan needs to know of the device."""
    # On a CPU the patches need about twice what they are planned with, and as much goes to the program and its workers.
    own = gpu_memory_gb(device) if device.type == "cuda" else machine_memory_gb() / 4
    memory = min(GPU_MEMORY_GB, own)
    return {"accelerated": device.type != "cpu", "memory_gb": memory}


def _choices(choices: PlanChoices, own_network: bool) -> PlanChoices:
    """The choices of a plan whose network is one of `NETWORKS`, or of the caller's own.

    Raises:
        ConfigError: the architecture is unknown.
        UsageError: the caller's own network and an architecture were given.
    """
    if not own_network:
        find_network(choices.architecture or "unet")
        return choices
    if choices.architecture:
        raise UsageError(
            f"Both network= and plan.architecture={choices.architecture} were given. Give one of them: network= for a "
            "network of your own."
        )
    return choices.model_copy(update={"architecture": CUSTOM})


def _check_parts(custom: Custom, plan: Plan, config: TrainingConfig, device: torch.device, world: int) -> None:
    """Make the caller's own network and optimiser once, so that what does not fit is said before anything is written.

    Raises:
        UsageError: see `volseg.networks.own` and `volseg.training.moments`.
    """
    if custom.network is None and custom.optimiser is None:
        return
    with random_numbers_kept(device), memory_errors(f"checking the network on {device}"):
        network = build_network(plan.network) if custom.network is None else build_own(custom.network, plan)
        network = network.to(device)
        if custom.network is not None:
            sizes = patch_sizes(plan, config.progressive_patch_size)
            dtype = choose_precision(config.precision, device)
            check_own(network, plan, sizes, max(1, plan.batch_size // world), dtype)
        if custom.optimiser is not None:
            build_optimiser(custom.optimiser, network, config.learning_rate, config.weight_decay)


def prepare(
    folder: Path,
    settings: RunSettings,
    config: Config,
    data: Dataset,
    device: torch.device,
    world: int,
    resume: bool,
    lock: Callable[[], None],
    custom: Custom,
) -> Run:
    """Split and plan, or read both from the run folder; nothing is written before the dataset has passed all checks.

    The plan is made from the cases of all folds, so that all folds have the same plan and can become one ensemble.
    """
    # Report unknown names before the dataset is read.
    SegmentationLoss(config.training.loss)
    choices = _choices(config.plan, "network" in settings.parts)
    has_plan = resume and (folder / "plan.yaml").exists()
    source = None if has_plan else find_source(settings, folder)
    if has_plan:
        require_same_datasets(data, settings.datasets)
        if data.problems:
            raise DatasetError(data.name, data.problems)
        remove_leftovers(folder)
    folds = run_folds(folder if has_plan else None, settings, data)
    split = choose_fold(folds, settings.fold)
    by_name = {case.name: case for case in data.cases}
    training, validation = ([by_name[name] for name in split[half]] for half in ("train", "val"))
    require_annotated(training, data.labels.stored)
    shares = shares_of(config.training.dataset_shares, list(data.parts), training)
    if has_plan:
        plan = read_plan(folder / "plan.yaml")
        start = read_start(folder) if settings.from_model else None
        require_same_labels(data, plan, start.labels.kept if start else ())
        check_shared(plan, world)
        _check_parts(custom, plan, config.training, device, world)
    else:
        used = {name for one in folds.splits for half in one.values() for name in half}
        data_used = replace(data, cases=tuple(case for case in data.cases if case.name in used))
        fingerprint = take_fingerprint(data_used, shared_cache())
        start, about = None, [*datasets_in_words(data, shares), *summary(fingerprint)]
        if source:
            plan, reasons, start = plan_from(
                source, data, fingerprint, config.plan, **_device_limits(device), label_map=settings.label_map,
                keep_labels=settings.keep_labels,
            )  # fmt: skip
            names = [data.name, *data.parts, *(part.name for part in data.parts.values())]
            seen = source.seen(names, settings.fold if validation else "all", settings.folds)
            start = start.model_copy(update={"seen": seen})
            about += start.table(settings.freeze is not None)
        else:
            plan, reasons = plan_for(data, fingerprint, choices, device)
        check_shared(plan, world)
        _check_parts(custom, plan, config.training, device, world)
        lock()
        settings = settings.model_copy(update={"datasets": tuple(data.parts)})
        start_run(folder, settings, config)
        write_json(folder / "splits.json", folds.splits)
        if start:
            write_json(folder / START, start.model_dump(mode="json"))
        write_text(folder / "plan.yaml", plan_text(plan, reasons, about))
        for label in data.labels.stored:
            if not any(case.volumes_ml.get(label) for case in fingerprint.cases):
                logger.warning("Label %s occurs in no case, so it cannot be learned", label)
    return Run(folder, settings, config, data, plan, device, training, validation, folds, start, shares=shares)
