"""Training as a user asks for it: a data set in, a run folder out."""

import logging
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from volseg.api.settings import RunSettings, begin, is_run, remove_scores, settle, sole
from volseg.api.validation import validate_from_files, validator
from volseg.config import Config, Plan, PlanChoices, load_config
from volseg.data.batches import BatchDataset, Onset, batch_loader, check_shared, lost_workers
from volseg.data.cache import CachedCase, cache_cases
from volseg.data.content import shared_cache
from volseg.data.dataset import DataSet, TrainingCase, choose_fold, open_dataset, read_splits, split_folds
from volseg.data.draws import Draws
from volseg.data.growth import Growth
from volseg.device import batch_workers, choose_device, gpu_memory_gb, memory_errors
from volseg.errors import DataSetError, InputError, Stopped
from volseg.files import remove_leftovers, write_json, write_text
from volseg.heap import kept_heap
from volseg.modelfile import ModelCard, save_model
from volseg.networks import UNet
from volseg.planning.fingerprint import Fingerprint, take_fingerprint
from volseg.planning.planner import GPU_MEMORY_GB, make_plan, plan_text, read_plan
from volseg.planning.summary import summary
from volseg.precision import choose_precision
from volseg.progress import Progress, silent
from volseg.report.run_report import write_run_report
from volseg.training.loop import fit
from volseg.training.metrics import MetricsLog
from volseg.training.ranks import Ranks, joined, local_device, ranks_here
from volseg.training.state import TrainingState, has_checkpoint
from volseg.training.stop import stop_requests
from volseg.transforms import augmentation, cropping
from volseg.version import __version__

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Run:
    """A run that is ready to train."""

    folder: Path
    settings: RunSettings
    config: Config
    data: DataSet
    plan: Plan
    device: torch.device
    training: list[TrainingCase]
    validation: list[TrainingCase]


def train(
    dataset: str | Path,
    output: str | Path,
    *,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    fold: int | str | None = None,
    folds: int | None = None,
    seed: int | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    progress: Progress = silent,
) -> Path:
    """Train a network on a data set and leave a run folder with the model, its scores and a report.

    Processes that torchrun started together share every batch and the validation, and one of them writes: the run is
    that of one process, within rounding. All of them have to see the same folders.

    Args:
        dataset: a Medical Segmentation Decathlon folder, an nnU-Net v2 raw folder, or one with images/ and labels/.
        output: the run folder; must not exist unless `resume` or `overwrite`.
        config: a YAML file, see `volseg.config.Config`.
        overrides: "key=value" changes to it.
        fold: 0 to folds - 1, or "all" to train on every case and validate on none. Default 0.
        folds: number of folds. Default 5.
        seed: of the weights and of all random draws. Default 0.
        minutes: wall-clock budget from the first step to the last; what is left of it after a resume.
        steps: exact number of steps instead. Without either: the plan's.
        resume: go on with the run in `output`, or begin it when there is none.
        overwrite: replace the run in `output`.
        device: auto, cpu, cuda, cuda:N or mps.
        progress: told how far the run is.

    Returns:
        The run folder.

    Raises:
        Stopped: Ctrl-C or SIGTERM; the checkpoint is on disk.
        VolsegError: see `volseg.errors`.
    """
    asked = {"fold": fold, "folds": folds, "seed": seed, "minutes": minutes, "steps": steps}
    folder = Path(output)
    place = local_device(device)
    with joined(place) as ranks, ExitStack() as held:

        @cache
        def hold() -> None:
            held.enter_context(sole(folder))

        def prepare() -> Run:
            if is_run(folder):
                hold()
            settled = settle(folder, Path(config) if config else None, overrides, asked, resume, overwrite)
            return _prepare(folder, *settled, open_dataset(Path(dataset)), place, ranks.world, resume, hold)

        run = replace(ranks.made_by_first(prepare), device=place)
        with _log_file(folder / "log.txt") if ranks.first else _quiet():
            logger.info("volseg %s on %s: %s, %d cases to train on, %d to validate on", __version__, place,
                        run.data.name, len(run.training), len(run.validation))  # fmt: skip
            try:
                state, done = _fit(run, ranks, progress if ranks.first else silent)
                if not done:
                    raise KeyboardInterrupt
                _finish(run, state, progress if ranks.first else silent)
            except KeyboardInterrupt as stop:
                again = shlex.join(["volseg", "train", str(dataset), "--output", str(folder), "--resume"])
                again = again if ranks.world == 1 else "the same command and --resume"
                raise Stopped(f"Stopped; what was reached is safe in {folder}. Go on with: {again}") from stop
    return folder


def plan_dataset(dataset: str | Path, config: Path | None, overrides: Sequence[str], device: str) -> str:
    """Look at a data set and say how volseg would train on all of it: YAML, the reason beside each value."""
    data, choices = open_dataset(Path(dataset)), load_config(config, overrides).plan
    fingerprint = take_fingerprint(data, shared_cache())
    plan, reasons = _plan(data, fingerprint, choices, choose_device(device))
    return plan_text(plan, reasons, summary(fingerprint))


def _plan(
    data: DataSet, fingerprint: Fingerprint, choices: PlanChoices, device: torch.device
) -> tuple[Plan, dict[str, str]]:
    """The plan for a device, and its reasons."""
    memory = min(GPU_MEMORY_GB, gpu_memory_gb(device))
    return make_plan(data, fingerprint, choices, accelerated=device.type != "cpu", memory_gb=memory)


def _prepare(
    folder: Path,
    settings: RunSettings,
    config: Config,
    data: DataSet,
    device: torch.device,
    world: int,
    resume: bool,
    hold: Callable[[], None],
) -> Run:
    """Split and plan, or take both from the run; the folder is touched only when nothing is wrong with the data.

    The plan is that of all cases of all folds, so that the folds have one plan and fit into one model.
    """
    planned = resume and (folder / "plan.yaml").exists()
    if planned:
        if data.problems:
            raise DataSetError(data.name, data.problems)
        remove_leftovers(folder)
        splits = read_splits(folder / "splits.json", data)
    elif settings.fold == "all":
        splits = [{"train": sorted(case.name for case in data.cases), "val": []}]
    else:
        splits = split_folds(data, settings.folds)
    split = choose_fold(splits, settings.fold)
    by_name = {case.name: case for case in data.cases}
    training, validation = ([by_name[name] for name in split[half]] for half in ("train", "val"))
    if planned:
        plan = read_plan(folder / "plan.yaml")
        _require_same_labels(data, plan)
        check_shared(plan, world)
    else:
        used = {name for one in splits for half in one.values() for name in half}
        data_used = replace(data, cases=tuple(case for case in data.cases if case.name in used))
        fingerprint = take_fingerprint(data_used, shared_cache())
        plan, reasons = _plan(data, fingerprint, config.plan, device)
        check_shared(plan, world)
        hold()
        begin(folder, settings, config)
        write_json(folder / "splits.json", splits)
        write_text(folder / "plan.yaml", plan_text(plan, reasons, summary(fingerprint)))
        for label in data.labels.stored:
            if not any(case.volumes_ml[label] for case in fingerprint.cases):
                logger.warning("Label %s is in no case: nothing is learned of it", label)
    return Run(folder, settings, config, data, plan, device, training, validation)


def _require_same_labels(data: DataSet, plan: Plan) -> None:
    """Refuse a data set whose labels or channels are not those that a run was begun with.

    Raises:
        InputError: they are not; the network would be taught, and scored, for something else.
    """
    labels = {label.name: label.stored_values for label in plan.labels}
    channels = tuple(channel.name for channel in plan.channels)
    begun = (labels, plan.ignore, channels)
    found = (data.labels.stored, data.labels.ignore, data.channels)
    for what, then, now in zip(("labels", "ignored value", "channels"), begun, found, strict=True):
        if then != now:
            raise InputError(
                f"The run was begun with the {what} {then}, but {data.folder} has {now}. "
                "Go on with the data set it began with, or begin another run."
            )


def _fit(run: Run, ranks: Ranks, progress: Progress) -> tuple[TrainingState, bool]:
    """Train from the checkpoint, or from the seed; where the run then stands, and whether its budget is spent."""
    training_cases, validation_cases = ranks.made_by_first(partial(_cached, run, progress))
    config = run.config.training
    torch.manual_seed(run.settings.seed)
    digest = sha256("\n".join(case.stem.name for case in training_cases).encode()).hexdigest()
    with memory_errors(f"bringing the network to {run.device}"):
        state = TrainingState(UNet(run.plan.network).to(run.device), config, ranks, digest)
    if has_checkpoint(run.folder / CHECKPOINT):
        state.load(run.folder / CHECKPOINT)
        logger.info("Going on after step %d", state.step)
    if ranks.first:
        # The model will be another one; until it is scored there are no scores.
        remove_scores(run.folder)
    changes = run.config.augmentation
    draws = Draws(config.foreground, run.settings.seed, ranks.rank, ranks.world)
    onset = Onset(cropping(run.plan, changes), changes.passes)
    dataset = BatchDataset(training_cases, run.plan, draws, augmentation(run.plan, changes), onset)
    growth = Growth(run.plan, draws, config.growth)
    dtype = choose_precision(config.precision, run.device)
    workers = batch_workers(run.device, ranks_here()) if config.workers is None else config.workers
    with (
        _bookkeeping(run, state, progress) as enter,
        lost_workers(),
        memory_errors("training"),
        kept_heap(large=True),
        stop_requests() as stopped,
    ):
        done = fit(
            state,
            batch_loader(dataset, state.step, workers),
            run.settings.budget(run.plan.steps),
            config,
            validator(run.plan, validation_cases, dtype, ranks),
            enter,
            stopped,
            grow=growth,
        )
        if ranks.first:
            state.save(run.folder / CHECKPOINT)
        # Whoever left now would have torchrun end the others, in the middle of writing.
        ranks.wait()
    return state, done


def _cached(run: Run, progress: Progress) -> tuple[list[CachedCase], list[CachedCase]]:
    """The cases to train on and those to validate on, preprocessed."""
    folder = shared_cache() or run.folder / "cache"
    return (
        cache_cases(run.training, run.plan, folder, partial(_show_cached, progress, "prepare")),
        cache_cases(run.validation, run.plan, folder, partial(_show_cached, progress, "prepare validation")),
    )


class Bookkeeper:
    """Keeps metrics, log lines, the progress bar and the checkpoint up to date while a run trains."""

    def __init__(self, run: Run, state: TrainingState, progress: Progress) -> None:
        self._run, self._state, self._progress = run, state, progress
        self._metrics = MetricsLog(run.folder, state.step)
        self._saved = time.monotonic()
        self._dice = ""

    def enter(self, record: dict[str, Any]) -> None:
        """Take in one step's record, see `fit`."""
        self._metrics.append(record)
        dice = record.get("foreground_dice")
        if dice is not None:
            self._dice = f", Dice {dice:.3f}"
            logger.info("step %d: validation Dice %.4f", record["step"], dice)
        text = f"step {record['step']}, loss {record['loss']:.3f}{self._dice}"
        self._progress("train", min(record["progress"], 1.0), text)
        if time.monotonic() - self._saved > self._run.config.training.checkpoint_seconds:
            self._state.save(self._run.folder / CHECKPOINT)
            self._saved = time.monotonic()

    def close(self) -> None:
        """Close the files of the metrics."""
        self._metrics.close()


@contextmanager
def _bookkeeping(run: Run, state: TrainingState, progress: Progress) -> Iterator[Callable[[dict[str, Any]], object]]:
    """What takes in the record of each step: a `Bookkeeper` on the rank that writes, nothing on the others."""
    if not state.ranks.first:
        yield dict
        return
    with closing(Bookkeeper(run, state, progress)) as books:
        yield books.enter


def _finish(run: Run, state: TrainingState, progress: Progress) -> None:
    """Write the model, choose its postprocessing and score it on the validation cases, and report."""
    weights = state.average.state_dict()
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
        },
    )
    model, ranks = run.folder / "model.safetensors", state.ranks
    if ranks.first:
        save_model(model, card, weights)
    ranks.wait()
    if run.validation:
        precision = run.config.training.precision
        found = validate_from_files(
            model, run.data, run.validation, run.folder, str(run.device), precision, progress, ranks
        )
        if ranks.first:
            save_model(model, card.model_copy(update=found), weights)
    if ranks.first:
        write_run_report(run.folder)
    logger.info("Finished after %d steps and %.0f seconds: %s", state.step, state.seconds, model)


def _show_cached(progress: Progress, stage: str, done: int, total: int) -> None:
    progress(stage, done / total, f"case {done} of {total}")


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Send the package's log lines to a file as well."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package = logging.getLogger("volseg")
    if package.level == logging.NOTSET:
        package.setLevel(logging.INFO)
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        handler.close()


@contextmanager
def _quiet() -> Iterator[None]:
    """Let only warnings through of the package's log lines: another process writes the same ones."""
    package = logging.getLogger("volseg")
    before = package.level
    package.setLevel(logging.WARNING)
    try:
        yield
    finally:
        package.setLevel(before)
