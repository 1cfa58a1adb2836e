"""An augmentation of your own: patches that become brighter along a random axis, as near a receive coil in MR."""

from pathlib import Path

import torch
from monai.transforms import RandomizableTransform

import volseg

DATASET = Path(__file__).parents[1] / "data_samples" / "phantoms"


class RandRamp(RandomizableTransform):
    """Multiplies "image" (C, D, H, W) by a ramp; "label" (1, D, H, W) stays as it is."""

    def __call__(self, sample):  # noqa: D102
        self.randomize(None)  # draws from the seed of the run
        if not self._do_transform:
            return sample
        axis, steepness = self.R.randint(1, 4), self.R.uniform(-0.5, 0.5)
        ramp = 1 + steepness * torch.linspace(-1, 1, sample["image"].shape[axis])
        return {**sample, "image": sample["image"] * ramp.view([-1 if one == axis else 1 for one in range(4)])}


ramps = RandRamp(prob=0.5)
run = volseg.train(
    DATASET, "runs/ramps", transforms=ramps, steps=20, device="cpu",
    overrides=["plan.features=[8, 16]", "plan.patch_size=[16, 32, 32]", "training.workers=0"],
)  # fmt: skip
