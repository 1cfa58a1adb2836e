"""Progress of a run and its learning-rate schedule: pure functions."""

import math
from dataclasses import dataclass


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


def learning_rate(progress: float, peak: float, warmup: float) -> float:
    """Linear warm-up to `peak` over the fraction `warmup` of the run, then cosine decay to 0.

    Loshchilov and Hutter 2017, arXiv 1608.03983, without restarts.
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return peak * (progress + 1e-3) / (warmup + 1e-3)
    return peak * 0.5 * (1.0 + math.cos(math.pi * (progress - warmup) / (1.0 - warmup)))
