"""The deterministic way of a scan to the network: orient, crop, normalise, resample.

Plain functions on (array, Geometry), called by predicting, by training's cache, and by the MONAI pipeline in
`volseg.transforms`: one truth for all. A scan is turned, normalised and resampled a few planes at a time, so that
beside the scan as stored and the network's volume nothing of their size is held.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from volseg.config import IGNORED, Channel, Plan
from volseg.data.body import body_box
from volseg.data.geometry import Box, Geometry, GridMap, map_to_network
from volseg.data.nonzero import filled_nonzero, nonzero_box
from volseg.data.resample import resample_nearest, resample_slabs, separate_axis, slabs
from volseg.device import has_room
from volseg.errors import InputError

CPU = torch.device("cpu")
# Intensities are divided in float32, where what is below this is 0, or as good as that.
_SMALLEST_SPREAD = float(np.finfo(np.float32).tiny)


def normaliser(
    channel: Channel, volume: np.ndarray, mask: np.ndarray | None = None, box: Box | None = None
) -> Callable[[int, int], np.ndarray]:
    """A function that gives planes start to stop of a volume as the network wants them, (planes, H, W) float32.

    Numbers that depend on the scan are those of the whole volume, also where planes are asked of a box in it.

    'zscore': minus the mean, over the standard deviation of the volume, however small (1 when it is constant).
    'zscore_nonzero': the same over and inside `mask`; outside of it voxels stay as they are, which is 0.
    'ct': clipped to the training percentiles, then minus the training mean, over the training deviation.
    'rescale': from 0 for the lowest to 1 for the highest intensity of the volume.
    'rgb': from 0 for 0 to 1 for 255.
    'none': as they are.

    Args:
        channel: what to do.
        volume: (D, H, W) of any real dtype, all of it.
        mask: (D, H, W) bool for 'zscore_nonzero', see `volseg.data.nonzero`.
        box: the part of the volume that planes are asked of; None for all of it.

    Raises:
        InputError: 'rgb' with intensities below 0 or above 255.
    """
    shift, scale = map(np.float32, _shift_and_scale(channel, volume, mask))
    cut = tuple(slice(*span) for span in box or ())
    part = volume[cut]
    within = mask[cut] if mask is not None and channel.normalisation == "zscore_nonzero" else None

    def normalise(start: int, stop: int) -> np.ndarray:
        values = part[start:stop].astype(np.float32, order="C")
        if channel.normalisation == "ct" and channel.clip is not None:
            np.clip(values, *channel.clip, out=values)
        where = True if within is None else within[start:stop]
        np.subtract(values, shift, out=values, where=where)
        np.divide(values, scale, out=values, where=where)
        return values

    return normalise


def image_to_network(
    channels: Sequence[np.ndarray],
    geometry: Geometry,
    plan: Plan,
    body: bool = False,
    device: torch.device = CPU,
) -> tuple[torch.Tensor, GridMap]:
    """Bring a scan to the plan's grid.

    Args:
        channels: one (I, J, K) array per channel of the plan, stored dtype.
        geometry: their grid.
        plan: of the model.
        body: whether only the box around the body is kept, see `volseg.data.body`. Intensities are normalised as they
            are without it.
        device: where it is resampled.

    Returns:
        (C, D, H, W) float32, on `device` where that has room for it beside windows, else on the CPU; and the map that
        leads back.

    Raises:
        InputError: the scan does not hold what the plan's normalisation needs.
    """
    grid = network_grid(channels, geometry, plan)
    volumes = [grid.into(array) for array in channels]
    box = None
    if body:
        box = body_box(volumes[0], grid.spacing_mm)
        grid = map_to_network(geometry, plan, _moved(box, grid.box))
    masked = any(channel.normalisation == "zscore_nonzero" for channel in plan.channels)
    mask = filled_nonzero(volumes) if masked else None
    separate = separate_axis(plan.image_resampling, grid.spacing_mm, plan.spacing_mm)

    shape = (len(volumes), *grid.shape)
    result = torch.empty(shape, device=device if has_room(device, 4 * math.prod(shape)) else CPU)

    def resample(channel: Channel, volume: np.ndarray, out: torch.Tensor) -> None:
        normalise = normaliser(channel, volume, mask, box)

        def read(start: int, stop: int) -> torch.Tensor:
            return torch.from_numpy(normalise(start, stop)).to(device)

        resample_slabs(read, grid.box_shape, grid.shape, plan.image_resampling, separate, out)

    for channel, volume, out in zip(plan.channels, volumes, result, strict=True):
        resample(channel, volume, out)
    return result, grid


def network_grid(channels: Sequence[np.ndarray], geometry: Geometry, plan: Plan) -> GridMap:
    """The map of a scan to the plan's grid, cropped as the plan says.

    Args:
        channels: one (I, J, K) array per channel of the plan, stored dtype.
        geometry: their grid.
        plan: of the model.
    """
    grid = map_to_network(geometry, plan)
    if plan.crop == "none":
        return grid
    return map_to_network(geometry, plan, nonzero_box([grid.into(array) for array in channels]))


def label_to_network(label: np.ndarray, grid: GridMap, plan: Plan) -> torch.Tensor:
    """Bring a label image (I, J, K) of stored values to its scan's grid: (D, H, W) as of `classes_of`.

    Args:
        label: the stored values.
        grid: of the scan, from `image_to_network` or `network_grid`: where it is cropped depends on the scan.
        plan: of the model.
    """
    classes = torch.from_numpy(np.ascontiguousarray(grid.into(classes_of(label, plan))))
    return resample_nearest(classes, grid.shape)


def classes_of(label: np.ndarray, plan: Plan) -> np.ndarray:
    """Stored label values as class indices, same shape; values outside the plan's labels become background.

    Index i stands for `plan.stored_values[i - 1]`: for plain labels that is class i, and `training_target` leads from
    there to regions. The dtype is uint8, or int16 where there are more than 254 values or some may be `IGNORED`.
    """
    # torch takes 255 in uint8 for IGNORED.
    small = len(plan.stored_values) < 255 and plan.ignore is None
    table = np.zeros(1 << 16, dtype=np.uint8 if small else np.int16)
    table[list(plan.stored_values)] = np.arange(1, len(plan.stored_values) + 1)
    if plan.ignore is not None:
        table[plan.ignore] = IGNORED
    classes: np.ndarray = table[label]
    return classes


def training_target(classes: torch.Tensor, plan: Plan) -> torch.Tensor:
    """What the loss compares the network's outputs with.

    Args:
        classes: (B, D, H, W) as of `classes_of`.
        plan: of the network.

    Returns:
        The same for plain labels; for regions (B, K, D, H, W) int8, 1 inside and 0 outside, `IGNORED` as it was.
    """
    if not plan.regions:
        return classes
    # One row per region. The last column is where IGNORED, as an index from the end, leads to.
    inside = torch.zeros(len(plan.labels), len(plan.stored_values) + 2, dtype=torch.int8)
    inside[:, IGNORED] = IGNORED
    for row, region in zip(inside, plan.labels, strict=True):
        row[classes_of(np.array(region.stored_values), plan).tolist()] = 1
    return inside[:, classes.long()].movedim(0, 1).contiguous()


def _moved(box: Box, outer: Box) -> Box:
    """A box that is counted from the start of another one, counted from where that one is."""
    d, h, w = ((low + start, low + stop) for (start, stop), (low, _) in zip(box, outer, strict=True))
    return d, h, w


def _shift_and_scale(channel: Channel, volume: np.ndarray, mask: np.ndarray | None) -> tuple[float, float]:
    """What is subtracted from intensities, and what they are divided by then."""
    match channel.normalisation:
        case "zscore" | "zscore_nonzero":
            mean, std = _mean_and_std(volume, mask if channel.normalisation == "zscore_nonzero" else None)
            return mean, _divisor(std)
        case "ct":
            # A Channel with this normalisation holds both, see its validator.
            assert channel.mean is not None
            assert channel.std is not None
            return channel.mean, _divisor(channel.std)
        case "rescale":
            low, high = float(volume.min()), float(volume.max())
            return low, _divisor(high - low)
        case "rgb":
            low, high = float(volume.min()), float(volume.max())
            if low < 0 or high > 255:
                raise InputError(
                    f"Channel {channel.name!r} has intensities from {low:g} to {high:g}, but the model wants those of "
                    f"RGB images, 0 to 255; give the scan as 8-bit images hold it."
                )
            return 0.0, 255.0
    return 0.0, 1.0


def _divisor(spread: float) -> float:
    """`spread`, or 1 where it is that of constant intensities; those of a scan in SI units may all be below 1e-8."""
    return spread if spread > _SMALLEST_SPREAD else 1.0


def _mean_and_std(volume: np.ndarray, mask: np.ndarray | None) -> tuple[float, float]:
    """Of all voxels, or of those in the mask, which may be none (0 and 0).

    In float64, plane after oriented plane, so that the way a scan was stored changes no bit of the result.
    """
    size = max(1, volume.size if mask is None else int(np.count_nonzero(mask)))

    def values(planes: slice) -> np.ndarray:
        return np.ascontiguousarray(volume[planes]) if mask is None else volume[planes][mask[planes]]

    def square_sum(planes: slice) -> float:
        return float(np.square(np.subtract(values(planes), mean, dtype=np.float64)).sum())

    mean = sum(float(values(planes).sum(dtype=np.float64)) for planes in slabs(volume.shape)) / size
    squares = (square_sum(planes) for planes in slabs(volume.shape))
    return mean, float(np.sqrt(sum(squares) / size))
