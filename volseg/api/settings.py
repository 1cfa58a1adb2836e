"""How a run was asked for, and the folder it lives in."""

import fcntl
import json
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from volseg.config import Config, Frozen, checked, load_config, read_yaml
from volseg.errors import ResourceError, UsageError
from volseg.files import LEFTOVERS, write_text
from volseg.training.schedule import Budget

# What tells of the model as it is scored.
SCORES = ("validation.json", "validation.csv", "report.html", "validation")
# Held by the command that is at work in the folder. It stays: whoever removed it would let two of them in.
LOCK = ".lock"
# What makes a folder a run; the last to go where one is removed.
MARK = "settings.yaml"
# All that a run leaves in its folder: what --overwrite removes, and nothing else.
CONTENT = (
    "plan.yaml", "config.yaml", "splits.json", "metrics.jsonl", "model.safetensors", "log.txt", "checkpoint", "cache",
    "events.out.tfevents.*", LEFTOVERS, *SCORES, MARK,
)  # fmt: skip


class RunSettings(Frozen):
    """How a run was asked for; kept in its folder, so that it goes on as it began."""

    fold: int | str = 0
    folds: int = Field(5, ge=2)
    seed: int = Field(0, ge=0, lt=2**63)
    minutes: float | None = Field(None, gt=0)
    steps: int | None = Field(None, gt=0)

    def budget(self, planned_steps: int) -> Budget:
        """What the run may spend: what was asked for, else the plan's number of steps."""
        if self.minutes is not None:
            return Budget(seconds=60 * self.minutes)
        return Budget(steps=self.steps or planned_steps)

    def command(self, dataset: str, config: Config) -> str:
        """The command that trains the same again; `dataset` is a name, because paths differ from machine to machine."""
        words = ["volseg", "train", dataset, "--output", "RUN"]
        for key, value in self.model_dump(exclude_none=True).items():
            words += [f"--{key}", str(value)]
        for group, changes in config.model_dump(mode="json", exclude_defaults=True).items():
            for key, value in changes.items():
                words += ["--set", f"{group}.{key}={value if isinstance(value, str) else json.dumps(value)}"]
        return shlex.join(words)


def settle(
    run: Path,
    config: Path | None,
    overrides: Sequence[str],
    asked: Mapping[str, Any],
    resume: bool,
    overwrite: bool,
) -> tuple[RunSettings, Config]:
    """What a run will be: from the call, or from the run that is resumed. Writes nothing but a new budget.

    Args:
        run: the folder.
        config: a YAML file, see `load_config`.
        overrides: `key=value` changes to it.
        asked: fields of `RunSettings`; None where nothing was asked for.
        resume: take up what is there, if anything.
        overwrite: what is there may be replaced.

    Raises:
        UsageError: the folder is taken, or a resumed run was begun with other settings.
        ConfigError: a setting or the configuration does not hold.
    """
    given = {key: value for key, value in asked.items() if value is not None}
    if "minutes" in given and "steps" in given:
        raise UsageError("Both minutes and steps were given. Give one of them.")
    if resume and overwrite:
        raise UsageError("Both resume and overwrite were given. Give one of them.")
    if resume and is_run(run):
        stored = load_config(run / "config.yaml")
        if (config or overrides) and load_config(config, overrides) != stored:
            raise UsageError(
                f"A resumed run keeps its configuration ({run / 'config.yaml'}). Leave out --config and --set."
            )
        return _taken_up(run / MARK, given), stored
    _refuse_taken(run, resume, overwrite)
    return checked(RunSettings, given, "What was asked for"), load_config(config, overrides)


def is_run(folder: Path) -> bool:
    """Whether a run was begun in `folder`."""
    return (folder / MARK).exists()


@contextmanager
def sole(run: Path) -> Iterator[None]:
    """Be the only command that trains in a run folder, or replaces what is there, until this is left.

    The folder is made if it is not there. However a process ends, the system takes its hold away.

    Raises:
        UsageError: another process has it.
        ResourceError: the folder cannot be written to.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = open(run / LOCK, "w", encoding="ascii")  # noqa: SIM115 - closed below
    except OSError as error:
        raise ResourceError(f"Could not write to {run}: {error.strerror}. Choose another place.") from error
    with lock:
        try:
            # Processes that are forked meanwhile, such as those that prepare batches, do not inherit this kind.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"Another process trains in {run}. Wait for it, stop it, or choose another folder."
            ) from error
        yield


def begin(run: Path, settings: RunSettings, config: Config) -> None:
    """Clear the folder of an earlier run and write down how this one was asked for."""
    _remove(run, CONTENT)
    write_text(run / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    write_text(run / MARK, yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))


def remove_scores(run: Path) -> None:
    """Take away what tells of a model that is about to be replaced."""
    _remove(run, SCORES)


def _remove(run: Path, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        for path in run.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _taken_up(settings_file: Path, given: dict[str, Any]) -> RunSettings:
    """The settings a run was begun with; a new budget may replace the old one, the rest must agree."""
    stored = checked(RunSettings, read_yaml(settings_file), str(settings_file)).model_dump()
    budget = {key: value for key, value in given.items() if key in ("minutes", "steps")}
    for key, value in given.items():
        if key not in budget and value != stored[key]:
            raise UsageError(
                f"The run was begun with {key} {stored[key]}, found {value}. Leave it out, or begin another run."
            )
    if budget:
        stored |= {"minutes": None, "steps": None, **budget}
        write_text(settings_file, yaml.safe_dump(stored, sort_keys=False))
    return checked(RunSettings, stored, "What was asked for")


def _refuse_taken(run: Path, resume: bool, overwrite: bool) -> None:
    """A folder with anything but a run in it is left alone, and a run is replaced only on request."""
    if run.exists() and not run.is_dir():
        raise UsageError(f"{run} is a file. Give the name of a folder.")
    there = {path.name for path in run.iterdir() if not path.match(LEFTOVERS)} if run.exists() else set()
    there.discard(LOCK)
    # A run that was killed while it began has its configuration and no more.
    if not there or ((resume or overwrite) and there == {"config.yaml"}):
        return
    if not overwrite:
        raise UsageError(f"{run} exists already. Go on with --resume, replace it with --overwrite, or choose another.")
    if not is_run(run):
        raise UsageError(f"{run} exists and is not a run, so it is not replaced. Choose another folder.")
    own = {path.name for pattern in CONTENT for path in run.glob(pattern)}
    foreign = sorted(there - own)
    if foreign:
        raise UsageError(f"{run} holds files that are not a run's ({', '.join(foreign[:3])}). Choose another folder.")
