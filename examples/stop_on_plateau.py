"""A callback that ends a run when its loss no longer falls; the run ends with a model and its scores."""

from pathlib import Path

import volseg

DATASET = Path(__file__).parents[1] / "data_samples" / "phantoms"


class StopOnPlateau:
    """Compares the mean loss of the last steps with that of as many before them."""

    def __init__(self, steps, least):
        self.steps, self.least, self.losses = steps, least, []

    def __call__(self, record, _):
        """Called after each step with its record and the state of the run; True ends it."""
        self.losses.append(record["loss"])
        before, last = (sum(part) for part in (self.losses[-2 * self.steps : -self.steps], self.losses[-self.steps :]))
        return len(self.losses) >= 2 * self.steps and before - last < self.least * before


run = volseg.train(
    DATASET, "runs/plateau", callbacks=StopOnPlateau(steps=8, least=0.15), steps=200, device="cpu",
    overrides=["plan.features=[8, 16]", "plan.patch_size=[16, 32, 32]", "training.workers=0"],
)  # fmt: skip
print(len((run / "metrics.jsonl").read_text().splitlines()), "of 200 steps")
