"""The deterministic way of a scan to the network: orient, normalise, resample.

Plain functions on (array, Geometry), called by predicting, by training's cache, and by the MONAI pipeline in
`volseg.transforms`: one truth for all. A scan is turned, normalised and resampled a few planes at a time, so that
beside the scan as stored and the network's volume nothing of their size is held.
"""

from collections.abc import Callable

import numpy as np
import torch

from volseg.config import Channel, Plan
from volseg.data.geometry import Geometry, GridMap, map_to_network
from volseg.data.resample import SLAB_VOXELS, resample_nearest, resample_slabs


def normaliser(channel: Channel, volume: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function that turns intensities of any real dtype into what the network wants, float32, same shape.

    'zscore': minus the mean, over the standard deviation of the volume (1 when it is constant).
    'ct': clipped to the training percentiles, then minus the training mean, over the training deviation.
    'none': as they are.

    Args:
        channel: what to do.
        volume: (D, H, W), all of it.
    """
    low, high = -np.inf, np.inf
    mean, std = 0.0, 1.0
    if channel.normalisation == "zscore":
        mean, std = _mean_and_std(volume)
    elif channel.normalisation == "ct":
        # A Channel with this normalisation holds all three, see its validator.
        assert channel.clip is not None
        assert channel.mean is not None
        assert channel.std is not None
        (low, high), mean, std = channel.clip, channel.mean, channel.std
    scale = np.float32(std if std > 1e-8 else 1.0)

    def normalise(part: np.ndarray) -> np.ndarray:
        values = part.astype(np.float32)
        if channel.normalisation == "ct":
            np.clip(values, low, high, out=values)
        values -= np.float32(mean)
        values /= scale
        return values

    return normalise


def image_to_network(channels: list[np.ndarray], geometry: Geometry, plan: Plan) -> tuple[torch.Tensor, GridMap]:
    """Bring a scan to the plan's grid.

    Args:
        channels: one (I, J, K) array per channel of the plan, stored dtype.
        geometry: their grid.
        plan: of the model.

    Returns:
        (C, D, H, W) float32 on the CPU, and the map that leads back.
    """
    grid = map_to_network(geometry, plan.through_plane, plan.spacing_mm)
    volumes = [
        _to_grid(channel, grid.into(array), grid) for channel, array in zip(plan.channels, channels, strict=True)
    ]
    return torch.stack(volumes) if len(volumes) > 1 else volumes[0][None], grid


def label_to_network(label: np.ndarray, geometry: Geometry, plan: Plan) -> torch.Tensor:
    """Bring a label image (I, J, K) of stored values to the plan's grid, as class indices: (D, H, W) uint8 or int16."""
    grid = map_to_network(geometry, plan.through_plane, plan.spacing_mm)
    classes = torch.from_numpy(np.ascontiguousarray(grid.into(classes_of(label, plan))))
    return resample_nearest(classes, grid.shape)


def classes_of(label: np.ndarray, plan: Plan) -> np.ndarray:
    """Stored label values as class indices, same shape; values outside the plan's labels become background."""
    table = np.zeros(1 << 16, dtype=np.uint8 if len(plan.labels) < 256 else np.int16)
    for index, one in enumerate(plan.labels, start=1):
        table[one.value] = index
    classes: np.ndarray = table[label]
    return classes


def _to_grid(channel: Channel, volume: np.ndarray, grid: GridMap) -> torch.Tensor:
    """One channel, oriented (D, H, W) and not yet resampled, on the network's grid."""
    normalise = normaliser(channel, volume)

    def read(start: int, stop: int) -> torch.Tensor:
        return torch.from_numpy(normalise(np.ascontiguousarray(volume[start:stop])))

    return resample_slabs(read, grid.box_shape, grid.shape)


def _mean_and_std(volume: np.ndarray) -> tuple[float, float]:
    """In float64, plane after oriented plane, so that the way a scan was stored changes no bit of the result."""
    planes = max(1, SLAB_VOXELS // volume[0].size)
    slabs = [slice(start, start + planes) for start in range(0, len(volume), planes)]
    mean = sum(float(np.ascontiguousarray(volume[slab]).sum(dtype=np.float64)) for slab in slabs) / volume.size
    squares = (np.square(np.ascontiguousarray(volume[slab]) - np.float64(mean)).sum() for slab in slabs)
    return mean, float(np.sqrt(sum(map(float, squares)) / volume.size))
