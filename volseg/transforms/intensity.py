"""Random intensity transforms with MONAI's interface, in place of MONAI's own.

MONAI's Gaussian smoothing pads with zeros, which darkens the border of every patch; its simulation of low resolution
cannot leave a coarse axis unchanged; its gamma correction takes all channels as one image. Images are (C, D, H, W)
float32.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_tensor

from volseg.data.grid.resample import resample_linear, resample_nearest


def blurred(image: torch.Tensor, sigma: np.ndarray) -> torch.Tensor:
    """Smooth with a Gaussian, truncated at three standard deviations; border voxels are replicated as padding.

    Args:
        image: (C, D, H, W) float32.
        sigma: (C, 3) standard deviations in voxels along D, H and W, all above 0.

    Returns:
        (C, D, H, W) float32.
    """
    channels = image.shape[0]
    radius = math.ceil(3 * float(sigma.max()))
    offsets = np.arange(-radius, radius + 1)
    for axis in range(3):
        if image.shape[1 + axis] == 1:
            continue  # repeated at the border, a single voxel stays as it is
        weights = np.exp(-0.5 * (offsets / sigma[:, axis, None]) ** 2)
        weights /= weights.sum(axis=1, keepdims=True)
        shape = [channels, 1, *(-1 if axis == other else 1 for other in range(3))]
        kernel = torch.from_numpy(weights.astype(np.float32)).reshape(shape)
        # F.pad counts axes from the last one.
        padding = [radius if axis == other else 0 for other in (2, 2, 1, 1, 0, 0)]
        image = F.conv3d(F.pad(image[None], padding, mode="replicate"), kernel, groups=channels)[0]
    return image


def at_low_resolution(image: torch.Tensor, zooms: np.ndarray) -> torch.Tensor:
    """Simulate a coarser scan: downsample to the nearest voxel, then upsample linearly.

    Args:
        image: (C, D, H, W) float32.
        zooms: (C, 3) downsampling factors along D, H and W: fraction of voxels kept, in (0, 1].

    Returns:
        (C, D, H, W) float32.
    """
    shape = (image.shape[1], image.shape[2], image.shape[3])
    coarse = np.maximum(1, np.rint(zooms * shape)).astype(int)
    return torch.stack(
        [
            resample_linear(resample_nearest(channel, (int(d), int(h), int(w))), shape)
            for channel, (d, h, w) in zip(image, coarse, strict=True)
        ]
    )


class _RandImaged(RandomizableTransform, MapTransform, ABC):  # type: ignore[misc]
    """Changes images (C, D, H, W) with a probability, each by itself."""

    def __init__(self, keys: KeysCollection, prob: float) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A dict with the images changed, or as they are."""
        out = dict(data)
        self.randomize(None)
        if self._do_transform:
            for key in self.keys:
                out[key] = self.change(convert_to_tensor(out[key], track_meta=False))
        return out

    @abstractmethod
    def change(self, image: torch.Tensor) -> torch.Tensor:
        """An image changed at random."""


class RandBlurd(_RandImaged):
    """Blur with a Gaussian of random width for each channel and axis.

    Args:
        keys: images (C, D, H, W).
        prob: probability of blurring.
        sigma: range of the standard deviation, in voxels.
    """

    def __init__(self, keys: KeysCollection, prob: float, sigma: tuple[float, float]) -> None:
        super().__init__(keys, prob)
        self.sigma = sigma

    def change(self, image: torch.Tensor) -> torch.Tensor:
        """The image blurred."""
        return blurred(image, self.R.uniform(*self.sigma, size=(len(image), 3)))


class RandLowResolutiond(_RandImaged):
    """Simulate a coarser scan, with a random zoom for each channel.

    Args:
        keys: images (C, D, H, W).
        prob: probability of doing so.
        zoom: range of the fraction of voxels kept along an axis.
        axes: network axes that become coarser, of 0, 1 and 2.
    """

    def __init__(
        self, keys: KeysCollection, prob: float, zoom: tuple[float, float], axes: tuple[int, ...] = (0, 1, 2)
    ) -> None:
        super().__init__(keys, prob)
        self.zoom = zoom
        self.axes = axes

    def change(self, image: torch.Tensor) -> torch.Tensor:
        """The image at low resolution."""
        zooms = np.ones((len(image), 3))
        zooms[:, self.axes] = self.R.uniform(*self.zoom, size=(len(image), 1))
        return at_low_resolution(image, zooms)


class RandChannelDropoutd(_RandImaged):
    """Set one channel, chosen at random, to 0.

    A network that sees each channel missing now and then does not rely on one of them alone, such as on the uptake in
    PET of a tumour that in another patient has none.

    Args:
        keys: images (C, D, H, W) of several channels.
        prob: probability of doing so.
    """

    def change(self, image: torch.Tensor) -> torch.Tensor:
        """The image without one of its channels."""
        image = image.clone()
        image[self.R.randint(len(image))] = 0
        return image


def gamma_corrected(image: torch.Tensor, gammas: np.ndarray, inverted: bool = False) -> torch.Tensor:
    """Raise each channel, scaled to 0 to 1 by its own extremes, to a power; its mean and standard deviation stay.

    Args:
        image: (C, D, H, W) float32.
        gammas: (C,) powers, all above 0.
        inverted: whether the negative image is raised instead.

    Returns:
        (C, D, H, W) float32; a constant channel stays as it is.
    """
    values = -image.flatten(1) if inverted else image.flatten(1)
    low, high = values.aminmax(dim=1, keepdim=True)
    powers = torch.from_numpy(gammas.astype(np.float32))[:, None]
    raised = ((values - low) / (high - low).clamp_min(1e-7)) ** powers
    spread, mean = torch.std_mean(values, dim=1, correction=0, keepdim=True)
    raised_spread, raised_mean = torch.std_mean(raised, dim=1, correction=0, keepdim=True)
    restored = (raised - raised_mean) * (spread / raised_spread.clamp_min(1e-7)) + mean
    return (-restored if inverted else restored).view_as(image)


class RandGammad(_RandImaged):
    """Gamma correction with a random power for each channel, each within its own extremes.

    Args:
        keys: images (C, D, H, W).
        prob: probability of doing so.
        gamma: range of the power.
        inverted: whether the negative image is corrected.
    """

    def __init__(self, keys: KeysCollection, prob: float, gamma: tuple[float, float], inverted: bool = False) -> None:
        super().__init__(keys, prob)
        self.gamma = gamma
        self.inverted = inverted

    def change(self, image: torch.Tensor) -> torch.Tensor:
        """The image corrected."""
        return gamma_corrected(image, np.array([self._power() for _ in image]), self.inverted)

    def _power(self) -> float:
        """A random power; of a range around 1 as often below as above it, although the range below is shorter."""
        low, high = self.gamma
        if low < 1 < high:
            low, high = (low, 1.0) if self.R.random_sample() < 0.5 else (1.0, high)
        return float(self.R.uniform(low, high))
