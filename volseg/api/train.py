"""Training: a dataset in, a run folder out."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path

from volseg.api.training.finish import finish_run
from volseg.api.training.fit import train_run
from volseg.api.training.prepare import Run, plan_for, prepare
from volseg.config import load_config
from volseg.data.cases.cache_key import shared_cache
from volseg.data.cases.sources.case_labels import annotated_cases
from volseg.data.cases.sources.shares import shares_of
from volseg.data.cases.workers import require_main_process
from volseg.data.joining import Source, datasets_in_words, folders_of, folds_in_words, open_datasets
from volseg.device import (
    choose_device,
    random_numbers_kept,
)
from volseg.errors import Stopped, UsageError
from volseg.files import given_path
from volseg.finetuning.source import start_settings
from volseg.networks.own import NetworkFactory
from volseg.planning.commented import plan_text
from volseg.planning.fingerprint import take_fingerprint
from volseg.planning.summary import summary
from volseg.progress import Progress, silent
from volseg.training.losses import LOSSES, PlainLoss, require_partial_labels
from volseg.training.moments import OptimiserFactory
from volseg.training.parts import Callback, Custom
from volseg.training.ranks import join_process_group, local_device
from volseg.training.run.bookkeeping import run_log
from volseg.training.run.folder import (
    configure_run,
    disk_errors,
    interrupted,
    is_run,
    lock_run_folder,
)
from volseg.training.run.sources import write_sources
from volseg.transforms import Transform
from volseg.version import __version__

logger = logging.getLogger(__name__)


def train(
    dataset: Source,
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
    from_model: str | Path | None = None,
    freeze: str | None = None,
    keep_labels: bool = False,
    label_map: Mapping[str, str] | None = None,
    device: str = "auto",
    progress: Progress = silent,
    loss: PlainLoss | None = None,
    network: NetworkFactory | None = None,
    transforms: Transform | Sequence[Transform] = (),
    optimiser: OptimiserFactory | None = None,
    callbacks: Callback | Sequence[Callback] = (),
) -> Path:
    """Train a network on a dataset; the run folder holds the model, its validation scores and a report.

    Processes started by torchrun share each batch and the validation, and rank 0 writes the files. The run equals that
    of a single process, up to rounding. All processes need access to the same folders.

    Args:
        dataset: a Medical Segmentation Decathlon folder, an nnU-Net v2 raw folder, or one with images/ and labels/; a
            list of such folders, which train one model together, see `volseg.data.joining`; or a list of cases, each
            (images, label) or {"image": ..., "label": ...}, see `volseg.data.records`.
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
        from_model: start from this model: a bundled name, a model file or a run folder. Labels and channels are matched
            by name; spacing, normalisation and network are the model's. Of an ensemble, fold K starts from the
            member of fold K.
        freeze: "encoder": the encoder keeps the model's weights.
        keep_labels: learn labels of the model that the dataset lacks from the model's own confident predictions.
        label_map: the name of a label in the dataset: that in the model, where they differ.
        device: auto, cpu, cuda, cuda:N or mps.
        progress: called with the fraction of the run that is done.
        loss: a function of logits (B, K, D, H, W) and class indices (B, D, H, W) to a scalar, instead of
            `training.loss`, see `volseg.losses.SegmentationLoss`. A resumed run needs it again, like the three below.
        network: a function of the plan to a torch module from (B, C, D, H, W) to logits (B, K, D, H, W), instead of the
            planned U-Net, see `volseg.networks.own`. `Segmenter.load` needs it again.
        transforms: a MONAI dictionary transform of "image" (C, D, H, W) and "label" (1, D, H, W), or a list of them,
            applied to each augmented patch after volseg's own; random ones have to be `monai.transforms.Randomizable`.
        optimiser: a function of (network, learning_rate, weight_decay) to a `torch.optim.Optimizer`, instead of Muon,
            see `volseg.training.moments`; the schedule scales the learning rate of each of its groups.
        callbacks: a function of (record, state), called after each step, or a list of them, see
            `volseg.training.parts`. True ends the run early, with model, scores and report.

    Returns:
        The run folder.

    Raises:
        Stopped: Ctrl-C or SIGTERM; the checkpoint is on disk.
        VolsegError: see `volseg.errors`.
    """
    require_main_process()
    custom = Custom.checked(loss, network, transforms, optimiser, callbacks)
    if network is not None and from_model is not None:
        raise UsageError(
            "Both network= and from_model= were given. A network of your own starts from its own weights: load them in "
            "the function that makes it, and leave out from_model."
        )
    file = None if splits is None else given_path(splits)
    budget = {"minutes": minutes, "steps": steps}
    settings = {"fold": fold, "folds": folds, "splits": file and file.name, "seed": seed, **budget}
    settings |= start_settings(from_model, freeze, keep_labels, label_map)
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

        def prepared() -> Run:
            if is_run(folder):
                lock()
            again = resume or finish
            resumed = again and is_run(folder)
            chosen, configuration = configure_run(folder, config, overrides, settings, again, overwrite, finish)
            if resumed:
                custom.require_same(chosen.parts, folder, finish)
            else:
                chosen = chosen.model_copy(update={"parts": custom.described()})
            data = replace(open_datasets(dataset), splits=file)
            used = custom.loss or LOSSES.get(configuration.training.loss)
            if used and any(case.own.annotated for case in data.cases):
                require_partial_labels(used)
            run = prepare(folder, chosen, configuration, data, torch_device, ranks.world, again, lock, custom)
            write_sources(folder, folders_of(dataset))
            return run

        run = replace(ranks.on_first_rank(prepared), device=torch_device, custom=custom, finish=finish)
        with run_log(folder, ranks.first):
            _log_beginning(run)
            try:
                state, done = train_run(run, ranks, progress if ranks.first else silent)
                if not done:
                    raise KeyboardInterrupt
                finish_run(run, state, progress if ranks.first else silent)
            except KeyboardInterrupt as stop:
                named = None if run.settings.parts else folders_of(dataset)
                raise Stopped(interrupted(folder, named, ranks.world)) from stop
    return folder


def _log_beginning(run: Run) -> None:
    """Tell what is trained, on which cases, from which model."""
    logger.info("volseg %s on %s: %s, %d cases to train on, %d to validate on", __version__, run.device,
                run.data.name, len(run.training), len(run.validation))  # fmt: skip
    logger.info("Fold %s of %d: %s", run.settings.fold, len(run.folds.splits), run.folds.source)
    annotated = annotated_cases([case.own for case in run.training], list(run.data.labels.values))
    if annotated:
        listed = ", ".join(f"{name} in {count} of {len(run.training)} cases" for name, count in annotated.items())
        logger.info("Partial labels: annotated are %s", listed)
    if run.start:
        for line in run.start.table(run.settings.freeze is not None):
            logger.info("%s", line)
        for warning in run.start.warnings():
            logger.warning("%s", warning)


def plan_dataset(
    dataset: Source, config: str | Path | None = None, overrides: Sequence[str] = (), device: str = "auto"
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
    settings = load_config(config, overrides)
    data = open_datasets(dataset)
    shares = shares_of(settings.training.dataset_shares, list(data.parts), data.cases)
    logger.info("Folds: %s", folds_in_words(data))
    fingerprint = take_fingerprint(data, shared_cache())
    plan, reasons = plan_for(data, fingerprint, settings.plan, choose_device(device))
    return plan_text(plan, reasons, [*datasets_in_words(data, shares), *summary(fingerprint)])
