"""The folder of a run: locked while a process trains in it, started, resumed, overwritten."""

import errno
import logging
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from volseg.config import Config, Frozen, checked, load_config, read_yaml
from volseg.data.cases.dataset import Dataset
from volseg.data.folds import Folds, read_splits, same_folds
from volseg.data.joining import folds_of
from volseg.errors import ConfigError, ResourceError, UsageError
from volseg.files import LEFTOVERS, require_writable, write_text
from volseg.system import file_lock
from volseg.text import first_few
from volseg.training.run.settings import OPTIONAL, EarlierBudget, RunSettings
from volseg.training.state import has_checkpoint, reached

logger = logging.getLogger(__name__)

# The scores of the model in the folder.
SCORES = (
    "validation.json", "calibration.json", "postprocessing.json", "validation.csv", "report.html", "validation",
)  # fmt: skip
# Locked by the process that trains in the folder. It is never removed: that would let a second process in.
LOCK = ".lock"
# The file that makes a folder a run; the last to be removed.
MARK = "settings.yaml"
# System errors of disks and of permissions on them.
DISK_ERRORS = (
    errno.EACCES, errno.EDQUOT, errno.EIO, errno.ENOENT, errno.ENOSPC, errno.ENOTEMPTY, errno.EPERM, errno.EROFS,
    errno.ESTALE,
)  # fmt: skip
CHECKPOINT = "checkpoint"
# The settings that may change when a run is resumed.
BUDGETS = {"minutes", "steps"}
# All files of a run: what --overwrite removes, and nothing else.
CONTENT = (
    "plan.yaml", "config.yaml", "splits.json", "cases.json", "sources.json", "ancestry.json", "metrics.jsonl",
    "model.safetensors", "log.txt", CHECKPOINT, "cache", "events.out.tfevents.*", LEFTOVERS, *SCORES, MARK,
)  # fmt: skip


def configure_run(
    run: Path,
    config: str | Path | None,
    overrides: Sequence[str],
    settings: Mapping[str, Any],
    resume: bool,
    overwrite: bool,
    finish: bool = False,
) -> tuple[RunSettings, Config]:
    """The settings and configuration of a run: from the call, or from the run that is resumed.

    Nothing is written but the new budget of a resumed run.

    Args:
        run: the folder.
        config: a YAML file, see `load_config`.
        overrides: `key=value` changes to it.
        settings: fields of `RunSettings`; None where nothing was given.
        resume: resume the run in the folder, if there is one.
        overwrite: the run in the folder may be replaced.
        finish: the run in the folder is to end with what it has reached; it has to be there.

    Raises:
        UsageError: the folder is taken, the resumed run was started with other settings or is beyond the new budget,
            or there is nothing to finish.
        ConfigError: a setting or the configuration is invalid.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    # Compared with a resumed run's as what they mean: "0" is 0.
    given = checked(RunSettings, given, "The call").model_dump(include=set(given))
    if finish:
        others = {"overwrite": overwrite, "config": config, "set": overrides}
        _check_finish(run, [*(given.keys() & BUDGETS), *(name for name, value in others.items() if value)])
    if "minutes" in given and "steps" in given:
        raise UsageError("Both minutes and steps were given. Give one of them.")
    if resume and overwrite:
        raise UsageError("Both resume and overwrite were given. Give one of them.")
    if (resume or finish) and is_run(run):
        _require_keys(run / MARK, RunSettings)
        _require_keys(run / "config.yaml", Config)
        stored = load_config(run / "config.yaml")
        started = checked(RunSettings, read_yaml(run / MARK), str(run / MARK))
        if (config or overrides) and _configured(config, overrides, started) != stored:
            raise UsageError(
                f"A resumed run keeps its configuration ({run / 'config.yaml'}). Leave out --config and --set."
            )
        return _resumed_settings(run, given), stored
    _check_free(run, resume, overwrite)
    new = checked(RunSettings, given, "The call")
    return new, _configured(config, overrides, new)


def _configured(config: str | Path | None, overrides: Sequence[str], settings: RunSettings) -> Config:
    """The configuration of a run, which has other defaults where it starts from a model."""
    found = load_config(config, overrides)
    return found.from_model() if settings.from_model else found


def is_run(folder: Path) -> bool:
    """Whether `folder` is a run folder."""
    return os.path.exists(folder / MARK)


def run_settings(run: Path) -> RunSettings:
    """The settings of the run in a folder.

    Raises:
        UsageError: there is none.
        ConfigError: its settings were changed.
    """
    if not is_run(run):
        raise UsageError(f"{run} is not a run folder. Give the folder that volseg train wrote by --output.")
    return checked(RunSettings, read_yaml(run / MARK), str(run / MARK))


def run_folds(started: Path | None, settings: RunSettings, data: Dataset) -> Folds:
    """The folds of a run that was started in a folder, or of a new one (None).

    Raises:
        UsageError: the run was started with other folds than those that are given.
        InputError: the folds do not fit the dataset, see `volseg.data.joining.folds_of`.
    """
    if started is None:
        if settings.splits and data.splits is None:
            raise UsageError(f"The run was started with --splits {settings.splits}, and then ended. Give it again.")
        if settings.fold == "all" and data.splits is None:
            return Folds([{"train": data.names, "val": []}], "every case, none to validate on")
        return folds_of(data, settings.folds)
    folds = read_splits(started / "splits.json", data.names)
    if data.splits and not same_folds(folds, read_splits(data.splits, data.names)):
        raise UsageError(
            f"{data.splits} has other folds than {folds.source}, with which the run was started. Leave out "
            "--splits, or start another run."
        )
    return folds


@contextmanager
def lock_run_folder(run: Path, finish: bool = False) -> Iterator[None]:
    """Keep other processes from training in a run folder, which is made if it does not exist.

    However a process ends, the system releases its lock. Where the file system has no locks, a warning says so.
    With `finish`, the message to one that comes second says how to end the first.

    Raises:
        UsageError: another process holds the lock, or a file of the run is a link, see `_require_own_files`.
        ResourceError: the folder cannot be written to.
    """
    _require_own_files(run)
    with ExitStack() as held:
        try:
            run.mkdir(parents=True, exist_ok=True)
            sure = held.enter_context(file_lock(run / LOCK))
        except BlockingIOError as error:
            advice = "Wait for it, stop it, or choose another folder."
            if finish:
                advice = "Stop that one with Ctrl-C (or SIGTERM), which saves its last step; then finish the run."
            raise UsageError(f"Another process is training in {run}. {advice}") from error
        except OSError as error:
            raise ResourceError(f"Could not write to {run}: {error.strerror}. Choose another folder.") from error
        if not sure:
            logger.warning("%s has no file locks, so nothing keeps another process from training in it", run)
        yield


@contextmanager
def disk_errors(run: Path) -> Iterator[None]:
    """Turn an error of a disk, wherever it comes from while a run trains, into one sentence.

    Raises:
        ResourceError: a file cannot be read, written or removed.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise ResourceError(
            f"Training in {run} stopped, because {error.filename or 'a file'} could not be read or written: "
            f"{error.strerror}. Check the disk and the permissions, then resume with --resume."
        ) from error


def interrupted(run: Path, datasets: Sequence[str | Path] | None, world: int) -> str:
    """What was saved of a run that was stopped, and how it goes on or comes to an end.

    Without `datasets`, no command can say how: it has a list of cases or parts of the caller's own.
    """
    again = shlex.join(["volseg", "train", *map(str, datasets or ()), "--output", str(run), "--resume"])
    again = again if world == 1 else "the same command and --resume"
    again = again if datasets is not None else "the same call of volseg.train and resume=True"
    if not has_checkpoint(run / CHECKPOINT):
        return f"Interrupted; prepared cases are kept in {run}. Resume with: {again}"
    # The command comes last, so that it can be copied to the end of the line.
    return (
        f"Interrupted; checkpoint saved in {run}. With --finish instead of --resume, it ends with a model of what it "
        f"has reached. Resume with: {again}"
    )


def _require_own_files(run: Path) -> None:
    """Check that training writes through no link, and waits for no pipe, in a run folder that someone else has made.

    Raises:
        UsageError: a file that is written in place is a link, or a file of the run is a folder, pipe or device.
    """
    for name in (LOCK, "log.txt", "metrics.jsonl", CHECKPOINT):
        if (run / name).is_symlink():
            raise UsageError(
                f"{run / name} is a link, which may lead anywhere, so nothing is written to it. Remove it. "
                "Only cache and validation may be links."
            )
    documents = ("settings.yaml", "config.yaml", "plan.yaml", "splits.json", "cases.json")
    for name in (LOCK, "log.txt", "metrics.jsonl", *documents):
        if os.path.exists(run / name) and not (run / name).is_file():
            raise UsageError(f"{run / name} is not a file. Remove it, or choose another folder.")
    if os.path.exists(run / CHECKPOINT) and not (run / CHECKPOINT).is_dir():
        raise UsageError(f"{run / CHECKPOINT} is not a folder. Remove it, or choose another folder.")


def _require_keys(path: Path, kind: type[Frozen]) -> None:
    """Check that a file of a run has all keys of `kind`, which would otherwise have their defaults, not the run's.

    Raises:
        ConfigError: one is missing, because the file was changed: it is written with all of them.
    """
    document = read_yaml(path)
    if missing := [key for key in kind.model_fields if key not in document and key not in OPTIONAL]:
        raise ConfigError(
            f"{path} lacks {first_few(missing)}, so it is not as the run wrote it. Restore it, or start again with "
            "--overwrite."
        )


def start_run(run: Path, settings: RunSettings, config: Config) -> None:
    """Remove an earlier run from the folder and store the settings of the new one."""
    _remove(run, CONTENT)
    write_text(run / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    _store(run / MARK, settings)


def _store(path: Path, settings: RunSettings) -> None:
    """Write the settings of a run."""
    write_text(path, yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))


def remove_scores(run: Path) -> None:
    """Remove the scores of a model that is about to be replaced."""
    _remove(run, SCORES)


def _remove(run: Path, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        for path in run.glob(pattern):
            # `cache` or `validation` on another disk stays; what lies there may belong to others.
            if not (path.is_symlink() and path.is_dir()):
                _remove_path(path)


def _remove_path(path: Path) -> None:
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        # Where a folder cannot be closed, rmtree closes it once more and raises an error of that.
        raise ResourceError(
            f"{path} could not be removed: {error.strerror}. Check the disk and the permissions, then start again."
        ) from error


def _check_finish(run: Path, others: Sequence[str]) -> None:
    """Reject a run that cannot be finished, and options that say how to train on."""
    if others:
        names = first_few([f"--{name}" for name in sorted(others)])
        raise UsageError(f"--finish ends a run with what it has reached, so leave out {names}.")
    if not is_run(run):
        raise UsageError(f"There is no run in {run} to finish. Start one without --finish.")
    if not has_checkpoint(run / CHECKPOINT):
        raise UsageError(f"The run in {run} has no checkpoint yet, so there is nothing to finish. Give --resume alone.")


def _resumed_settings(run: Path, given: dict[str, Any]) -> RunSettings:
    """The settings a run was started with; a new budget may replace the old one, all others must agree."""
    stored = checked(RunSettings, read_yaml(run / MARK), str(run / MARK))
    for key, value in given.items():
        if key not in BUDGETS and value != getattr(stored, key):
            key_shown = key.removesuffix("_model").replace("_", "-")
            raise UsageError(
                f"The run was started with {key_shown} {getattr(stored, key)}, found {value}. Leave it out, or start "
                "another run."
            )
    if not given.keys() & BUDGETS:
        return stored
    budget = {"minutes": given.get("minutes"), "steps": given.get("steps")}
    resumed = checked(RunSettings, stored.model_dump() | budget, "The call")
    if resumed == stored:
        return stored
    step, seconds = reached(run / CHECKPOINT) or (0, 0.0)
    if resumed.minutes is not None and seconds >= 60 * resumed.minutes:
        raise _beyond(run, f"trained for {seconds / 60:.3g} minutes", f"--minutes {resumed.minutes:g}")
    if resumed.steps is not None and step > resumed.steps:
        raise _beyond(run, f"finished {step} steps", f"--steps {resumed.steps}")
    earlier = list(stored.earlier)
    if step and (not earlier or earlier[-1].until < step):
        earlier.append(EarlierBudget(minutes=stored.minutes, steps=stored.steps, until=step))
    elif earlier and (earlier[-1].minutes, earlier[-1].steps) == (resumed.minutes, resumed.steps):
        # Nothing was trained in between.
        earlier.pop()
    resumed = resumed.model_copy(update={"earlier": tuple(earlier)})
    _store(run / MARK, resumed)
    return resumed


def _beyond(run: Path, done: str, budget: str) -> UsageError:
    return UsageError(
        f"The run in {run} has already {done}, and {budget} counts from its start, so there is nothing to train. "
        "Give more, leave it out to train with the budget it has, or end the run with --finish."
    )


def _check_free(run: Path, resume: bool, overwrite: bool) -> None:
    """Reject a folder that holds anything but a run or cannot be written to, and a run unless it may be replaced."""
    if os.path.exists(run) and not run.is_dir():
        raise UsageError(f"{run} is a file. Give the name of a folder.")
    require_writable([run / "model.safetensors"])
    there = {path.name for path in run.iterdir() if not path.match(LEFTOVERS)} if run.exists() else set()
    there.discard(LOCK)
    # A run that was killed while it started has its configuration and no more.
    if not there or ((resume or overwrite) and there == {"config.yaml"}):
        return
    if not overwrite:
        raise UsageError(
            f"{run} already exists. Resume it with --resume, replace it with --overwrite, or choose another folder."
        )
    if not is_run(run):
        raise UsageError(f"{run} exists and is not a run folder, so it is not replaced. Choose another folder.")
    own = {path.name for pattern in CONTENT for path in run.glob(pattern)}
    foreign = sorted(there - own)
    if foreign:
        raise UsageError(
            f"{run} holds files that do not belong to a run ({first_few(foreign, 3)}). Choose another folder."
        )
