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
from volseg.data.cases.dataset import folds_in_files, grouping_of, open_dataset
from volseg.data.cases.workers import require_main_process
from volseg.device import (
    choose_device,
    random_numbers_kept,
)
from volseg.errors import Stopped
from volseg.files import given_path
from volseg.finetuning.source import start_settings
from volseg.planning.fingerprint import take_fingerprint
from volseg.planning.planner import plan_text
from volseg.planning.summary import summary
from volseg.progress import Progress, silent
from volseg.training.losses import PlainLoss
from volseg.training.parts import Custom
from volseg.training.ranks import join_process_group, local_device
from volseg.training.run.bookkeeping import run_log
from volseg.training.run.folder import (
    configure_run,
    disk_errors,
    interrupted,
    is_run,
    lock_run_folder,
)
from volseg.transforms import Transform
from volseg.version import __version__

logger = logging.getLogger(__name__)


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
    from_model: str | Path | None = None,
    freeze: str | None = None,
    keep_labels: bool = False,
    label_map: Mapping[str, str] | None = None,
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
        from_model: start from this model: a bundled name, a model file or a run folder. Labels and channels are matched
            by name; spacing, normalisation and network are the model's. Of an ensemble, fold K starts from member K.
        freeze: "encoder": the encoder keeps the model's weights.
        keep_labels: learn labels of the model that the dataset lacks from the model's own confident predictions.
        label_map: the name of a label in the dataset: that in the model, where they differ.
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
            configured = configure_run(folder, config, overrides, settings, again, overwrite, finish)
            data = replace(open_dataset(Path(dataset)), splits=file)
            return prepare(folder, *configured, data, torch_device, ranks.world, again, lock)

        run = replace(ranks.on_first_rank(prepared), device=torch_device, custom=custom, finish=finish)
        with run_log(folder, ranks.first):
            logger.info("volseg %s on %s: %s, %d cases to train on, %d to validate on", __version__, torch_device,
                        run.data.name, len(run.training), len(run.validation))  # fmt: skip
            logger.info("Fold %s of %d: %s", run.settings.fold, len(run.folds.splits), run.folds.source)
            for line in run.start.table() if run.start else ():
                logger.info("%s", line)
            try:
                state, done = train_run(run, ranks, progress if ranks.first else silent)
                if not done:
                    raise KeyboardInterrupt
                finish_run(run, state, progress if ranks.first else silent)
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
    plan, reasons = plan_for(data, fingerprint, choices, choose_device(device))
    return plan_text(plan, reasons, summary(fingerprint))
