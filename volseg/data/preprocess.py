"""The deterministic way of a scan to the network: orient, normalise, resample.

Plain functions on (array, Geometry), used by predicting directly and by training through thin MONAI
transforms: one truth for both.
"""

import numpy as np
import torch

from volseg.config import Channel, Plan
from volseg.data.geometry import Geometry, GridMap, map_to_network
from volseg.data.resample import resample_linear, resample_nearest


def normalise(channel: Channel, array: np.ndarray) -> np.ndarray:
    """Intensities (D, H, W) of any real dtype as the network wants them, float32, same shape.

    'zscore': minus the mean, over the standard deviation of the scan (1 when it is constant).
    'ct': clipped to the training percentiles, then minus the training mean, over the training deviation.
    """
    values = array.astype(np.float32)
    if channel.normalisation == "none":
        return values
    if channel.normalisation == "zscore":
        mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    else:
        # A Channel with this normalisation holds all three, see its validator.
        assert channel.clip is not None
        assert channel.mean is not None
        assert channel.std is not None
        np.clip(values, *channel.clip, out=values)
        mean, std = channel.mean, channel.std
    values -= np.float32(mean)
    values /= np.float32(std if std > 1e-8 else 1.0)
    return values


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
        # Oriented before it is summed over, so that the way a scan was stored changes no bit of the result.
        resample_linear(torch.from_numpy(normalise(channel, np.ascontiguousarray(grid.into(array)))), grid.shape)
        for channel, array in zip(plan.channels, channels, strict=True)
    ]
    return torch.stack(volumes), grid


def label_to_network(label: np.ndarray, geometry: Geometry, plan: Plan) -> torch.Tensor:
    """Bring a label image (I, J, K) of stored values to the plan's grid, as class indices: (D, H, W) uint8 or int16."""
    grid = map_to_network(geometry, plan.through_plane, plan.spacing_mm)
    classes = torch.from_numpy(np.ascontiguousarray(grid.into(classes_of(label, plan))))
    return resample_nearest(classes, grid.shape)


def classes_of(label: np.ndarray, plan: Plan) -> np.ndarray:
    """Stored label values as class indices, same shape; values outside the plan's labels become background."""
    kind = np.uint8 if len(plan.labels) < 256 else np.int16
    classes = np.zeros(label.shape, dtype=kind)
    for index, one in enumerate(plan.labels, start=1):
        classes[label == one.value] = index
    return classes
