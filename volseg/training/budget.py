"""The budget of a run: optimiser steps or seconds."""

from dataclasses import dataclass

from volseg.text import counted


@dataclass(frozen=True)
class Budget:
    """The budget of a run: a number of optimiser steps, or wall-clock seconds from the first step to the last."""

    steps: int | None = None
    seconds: float | None = None

    def progress(self, step: int, seconds: float) -> float:
        """The fraction spent after `step` steps and `seconds` seconds: 0 at the start, 1 or more when spent."""
        if self.steps is not None:
            return step / self.steps
        assert self.seconds is not None
        return seconds / self.seconds

    def __str__(self) -> str:
        """In words: "8 steps", "20 minutes"."""
        return counted(self.steps, "step") if self.steps is not None else f"{(self.seconds or 0) / 60:g} minutes"

    def spent(self, step: int, seconds: float) -> str:
        """In words what of it is spent: "step 3 of 8", "step 3 and 1.5 of 20 minutes"."""
        if self.steps is not None:
            return f"step {step} of {self.steps}"
        return f"step {step} and {seconds / 60:.3g} of {self}"

    def resumed(self, step: int, seconds: float, finish: bool = False) -> str:
        """What happens to a run that has reached a step, as a sentence; `finish`: it is to train no further."""
        reached = self.spent(step, seconds)
        if self.progress(step, seconds) >= 1:
            return f"The run has spent its budget ({reached}), so nothing more is trained; its model is made and scored"
        if finish:
            return f"Finishing after {reached}: nothing more is trained; the model of this step is made and scored"
        return f"Resuming after {reached}"
