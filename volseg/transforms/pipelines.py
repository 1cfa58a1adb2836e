"""The MONAI pipelines of training: deterministic preprocessing to network space, and random augmentation."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from monai.transforms import (
    Compose,
    EnsureTyped,
    RandGaussianNoised,
    Randomizable,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
)

from volseg.config import AugmentationConfig, Plan
from volseg.transforms.checked import CheckedPatch
from volseg.transforms.intensity import RandBlurd, RandChannelDropoutd, RandGammad, RandLowResolutiond
from volseg.transforms.network_grid import ImageToNetworkd, LabelToNetworkd, ReadCased
from volseg.transforms.spatial import RandAffinePatchd, augments_in_plane

# A MONAI dictionary transform, or any function from dict to dict.
Transform: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]


class SharedRandomCompose(Compose):  # type: ignore[misc]
    """A `Compose` whose steps share one random generator.

    MONAI's creates two generators per step whenever it is seeded, which takes longer than making the sample.
    """

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> "SharedRandomCompose":
        """Seed one generator for all steps, or use `state`."""
        self.R = np.random.RandomState(seed) if state is None else state
        for transform in self.transforms:
            if isinstance(transform, Randomizable):
                transform.set_random_state(state=self.R)
        return self


def preprocessing(plan: Plan) -> Compose:
    """The deterministic pipeline: read, orient, normalise, resample.

    Takes a dict {"image": path, or paths one per channel; "label": path} and gives {"image": (C, D, H, W) float32,
    "label": (1, D, H, W) class indices, uint8 or int16}, plain tensors. MONAI wraps an error of a step into a
    RuntimeError whose cause is the volseg error.
    """
    return Compose(
        [
            ReadCased("image", "label", plan),
            LabelToNetworkd("label", "image", plan),
            ImageToNetworkd("image", plan),
        ]
    )


def cropping(plan: Plan, config: AugmentationConfig) -> Compose:
    """The pipeline for patches without augmentation: only cropping, flips and channel dropout, as in `augmentation`."""
    only_flips = config.model_copy(update={"rotation": 0.0, "scaling": 0.0})
    return SharedRandomCompose(
        [
            RandAffinePatchd(("image", "label"), plan, only_flips, mode=("bilinear", "nearest")),
            *_channel_dropout(plan, config),
        ]
    )


def augmentation(plan: Plan, config: AugmentationConfig, more: Sequence[Transform] = ()) -> Compose:
    """The random pipeline: crop a patch from a preprocessed case, spatial and intensity augmentation, then `more`.

    The order of the steps is nnU-Net's. Takes a dict {"image": (C, D, H, W) float32, "label": (1, D, H, W),
    "centre": (D, H, W) voxel, optional} of arrays, tensors or cached images of any size; gives {"image":
    (C, *patch_size) float32, "label": (1, *patch_size) as stored}, plain tensors. `set_random_state(seed)` makes it
    repeatable.
    """
    in_plane = augments_in_plane(plan)
    brightness = (config.brightness_range[0] - 1, config.brightness_range[1] - 1)
    contrast = (config.contrast_range[0] - 1, config.contrast_range[1] - 1)
    return SharedRandomCompose(
        [
            RandAffinePatchd(("image", "label"), plan, config, mode=("bilinear", "nearest")),
            RandGaussianNoised("image", prob=config.noise, std=math.sqrt(config.noise_variance)),
            RandBlurd("image", prob=config.blur, sigma=config.blur_sigma),
            RandScaleIntensityd("image", prob=config.brightness, factors=brightness, channel_wise=True),
            RandScaleIntensityFixedMeand(
                "image", prob=config.contrast, factors=contrast, preserve_range=True, channel_wise=True
            ),
            RandLowResolutiond(
                "image",
                prob=config.low_resolution,
                zoom=config.low_resolution_range,
                axes=(1, 2) if in_plane else (0, 1, 2),
            ),
            RandGammad("image", prob=config.gamma_inverted, gamma=config.gamma_range, inverted=True),
            RandGammad("image", prob=config.gamma, gamma=config.gamma_range),
            *_channel_dropout(plan, config),
            *more,
            *([CheckedPatch(plan)] if more else []),
            EnsureTyped("image", track_meta=False),
        ],
        # Else a list of several samples, as of RandCropByPosNegLabeld, would pass every check one by one.
        map_items=False,
    )


def _channel_dropout(plan: Plan, config: AugmentationConfig) -> list[Transform]:
    """Channel dropout, if it is wanted and leaves a channel."""
    wanted = config.channel_dropout > 0 and len(plan.channels) > 1
    return [RandChannelDropoutd("image", prob=config.channel_dropout)] if wanted else []
