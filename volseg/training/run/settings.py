"""What a run is told: its fold, seed and budget."""

import json
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer

from volseg.config import Config, Frozen, Name
from volseg.text import whole_number
from volseg.training.budget import Budget

# What a run takes from a model.
_FROM = ("from_model", "freeze", "keep_labels", "label_map")
# Stored only where there is anything to say.
OPTIONAL = ("splits", "earlier", "parts", "datasets", *_FROM)


class EarlierBudget(Frozen):
    """A budget that another one has replaced, and the finished steps at that moment; of neither kind: the plan's."""

    minutes: float | None = None
    steps: int | None = None
    until: int


def _number(value: Any) -> Any:
    """A number of NumPy as one of Python; True and False are none."""
    if isinstance(value, bool | np.bool_):
        raise ValueError("expected a number")
    return value.item() if isinstance(value, np.generic) else value


def _fold(value: Any) -> int | str:
    """A fold by its number, also as text, or "all"."""
    number = whole_number(value) if isinstance(value, str | int | np.integer) else None
    if number is None and not (isinstance(value, str) and value.lower() == "all"):
        raise ValueError("expected the number of a fold, from 0, or all")
    return "all" if number is None else number


class RunSettings(Frozen):
    """The settings of a run, stored in its folder, so that it resumes with the same ones."""

    fold: Annotated[int | str, BeforeValidator(_fold)] = 0
    folds: Annotated[int, BeforeValidator(_number), Field(ge=2)] = 5
    splits: str | None = Field(None, description="the name of the file whose folds are used; None: no file was given")
    seed: Annotated[int, BeforeValidator(_number), Field(ge=0, lt=2**63)] = 0
    minutes: Annotated[float, BeforeValidator(_number), Field(gt=0)] | None = None
    steps: Annotated[int, BeforeValidator(_number), Field(gt=0)] | None = None
    from_model: str | None = Field(None, description="a bundled name, or the path of a model file or a run folder")
    freeze: Literal["encoder"] | None = None
    keep_labels: bool = False
    label_map: dict[Name, Name] = Field(default_factory=dict, description="label of the dataset: that of the model")
    earlier: tuple[EarlierBudget, ...] = ()
    parts: dict[str, str] = Field(
        default_factory=dict, description="qualified names of the parts that the caller brought, see `Custom`"
    )
    datasets: tuple[str, ...] = Field((), description="the names of the datasets that are joined; (): there is one")

    @model_serializer(mode="wrap")
    def _without_missing(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Older versions read the settings of runs that do without these.
        return {key: value for key, value in handler(self).items() if value or key not in OPTIONAL}

    def budget(self, planned_steps: int) -> Budget:
        """The budget of the run; without minutes or steps, the plan's number of steps."""
        return _budget(self.minutes, self.steps, planned_steps)

    def command(self, dataset: str, config: Config) -> str:
        """The command that trains the same again; `dataset` is a name, because paths differ between machines.

        Of a run that was resumed with another budget, the commands one after the other, see `changes`.
        """
        words = ["volseg", "train", *(self.datasets or (dataset,)), "--output", "RUN"]
        first, *others = *self.earlier, self
        left_out = {"earlier", "parts", "datasets", *_FROM}
        start = self.model_dump(exclude=left_out) | {"minutes": first.minutes, "steps": first.steps}
        budgets = [{"minutes": one.minutes, "steps": one.steps} for one in others]
        options = [word for key, value in start.items() if value is not None for word in (f"--{key}", str(value))]
        options += self._start_options()
        for group, changes in config.model_dump(mode="json", exclude_defaults=True).items():
            for key, value in changes.items():
                options += ["--set", f"{group}.{key}={value if isinstance(value, str) else json.dumps(value)}"]
        commands = [[*words, *options]]
        for budget in budgets:
            given = [word for key, value in budget.items() if value is not None for word in (f"--{key}", str(value))]
            commands.append([*words, "--resume", *given])
        return " && ".join(map(shlex.join, commands))

    def _start_options(self) -> list[str]:
        """The options that name the model that the run starts from."""
        if self.from_model is None:
            return []
        options = ["--from", Path(self.from_model).name]
        options += ["--freeze", self.freeze] if self.freeze else []
        options += ["--keep-labels"] if self.keep_labels else []
        return options + [word for new, old in self.label_map.items() for word in ("--label-map", f"{new}={old}")]

    def ended(self, planned_steps: int, step: int, seconds: float, finish: bool) -> dict[str, str]:
        """For the model card: how the run came to its end, where it is not the end that `command` says."""
        budget = self.budget(planned_steps)
        changes = self.changes(planned_steps)
        texts = {"resumed": changes} if changes else {}
        if finish and budget.progress(step, seconds) < 1:
            texts["finished"] = f"early, after {budget.spent(step, seconds)}"
        return texts

    def changes(self, planned_steps: int) -> str:
        """What was resumed with which budget, in words, and whether `command` repeats it; "" for a single budget."""
        if not self.earlier:
            return ""
        replaced = [(_budget(one.minutes, one.steps, planned_steps), one.until) for one in self.earlier]
        parts = [f"{budget} until step {until}" for budget, until in replaced]
        exact = all(budget.steps == until for budget, until in replaced)
        note = "" if exact else "; no command stops there, so the one above trains a similar model, not the same"
        return f"{', then '.join([*parts, str(self.budget(planned_steps))])}{note}"


def _budget(minutes: float | None, steps: int | None, planned_steps: int) -> Budget:
    return Budget(seconds=60 * minutes) if minutes is not None else Budget(steps=steps or planned_steps)
