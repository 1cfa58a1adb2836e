"""The check of what transforms of the caller's own make of a patch."""

from dataclasses import dataclass
from typing import Any

import torch

from volseg.config import IGNORED, Plan
from volseg.errors import UsageError


@dataclass(frozen=True)
class CheckedPatch:
    """Checks a sample and gives its patches the number types that volseg's own transforms leave.

    Transforms of MONAI make the label image float32, and NumPy makes images float64.

    Args:
        plan: of the run: channels, patch size and labels.
    """

    plan: Plan

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """The sample with "image" (C, *patch_size) float32 and "label" (1, *patch_size) integer.

        Raises:
            UsageError: it lacks one of the two, or one has another shape or values that are no class indices.
        """
        if not isinstance(sample, dict) or not {"image", "label"} <= sample.keys():
            found = f"the keys {', '.join(map(str, sample))}" if isinstance(sample, dict) else type(sample).__name__
            raise UsageError(f'A transform returned {found}, expected a dictionary with "image" and "label".')
        image, label = (torch.as_tensor(sample[key]) for key in ("image", "label"))
        for key, patch, channels in (("image", image, len(self.plan.channels)), ("label", label, 1)):
            expected = (channels, *self.plan.patch_size)
            if tuple(patch.shape) != expected:
                raise UsageError(
                    f'The transforms made "{key}" {tuple(patch.shape)}, expected {expected}: patches keep their size.'
                )
        return sample | {"image": image.float(), "label": self._classes(label)}

    def _classes(self, label: torch.Tensor) -> torch.Tensor:
        """The class indices of a label patch of any number type."""
        last = len(self.plan.stored_values)
        classes = label.to(torch.int16) if label.is_floating_point() else label
        if (
            not torch.equal(classes.to(label.dtype), label)
            or not IGNORED <= int(classes.min()) <= classes.max() <= last
        ):
            raise UsageError(
                f'The transforms made "label" values from {label.min().item():g} to {label.max().item():g}, expected '
                f"class indices: whole numbers from 0 to {last}, or {IGNORED} where nobody annotated. Give spatial "
                'transforms mode="nearest" for the label.'
            )
        return classes
