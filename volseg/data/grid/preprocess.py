"""Deterministic preprocessing of a scan: orient, crop, normalise, resample to network space.

Plain functions on (array, Geometry), shared by prediction, the training cache and the MONAI pipeline in
`volseg.transforms`. A scan is normalised and resampled a few planes at a time, so that nothing else of its size is in
memory besides the scan in its own dtype and the result.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from volseg.config import IGNORED, Channel, Plan, Resampling
from volseg.data.grid.body import body_box
from volseg.data.grid.geometry import Box, Geometry, GridMap, map_to_network
from volseg.data.grid.intensities import LARGE_OFFSET, PLAIN, Reference, mean_and_std, reference_for
from volseg.data.grid.nonzero import filled_nonzero, nonzero_box
from volseg.data.grid.resample import resample_classes, resample_nearest, resample_slabs, separate_axis
from volseg.device import empty_volume, to_device
from volseg.errors import InputError

CPU = torch.device("cpu")
# Stored types that torch converts on every device.
_ON_DEVICE = ("uint8", "int8", "int16", "int32", "float32")
# Intensities are divided in float32, which cannot represent smaller divisors at full precision.
_SMALLEST_DIVISOR = float(np.finfo(np.float32).tiny)


def normaliser(
    channel: Channel, volume: np.ndarray, mask: np.ndarray | None = None, box: Box | None = None
) -> Callable[[int, int], np.ndarray]:
    """A function that returns the normalised planes start to stop of a volume, (planes, H, W) float32.

    Mean, standard deviation and range are those of the whole volume, even if planes are taken from a box in it. An
    offset that float32 cannot hold is subtracted first, see `volseg.data.grid.intensities`; not with 'rgb' and 'none'.

    'zscore': subtract the mean, divide by the standard deviation of the volume (by 1 if the volume is constant).
    'zscore_nonzero': the same with mean and standard deviation inside `mask`; voxels outside it, which are 0, stay 0.
    'ct': clip to the training percentiles, subtract the training mean, divide by the training standard deviation.
    'rescale': map the lowest intensity of the volume to 0 and the highest to 1.
    'rgb': map 0 to 0 and 255 to 1.
    'none': unchanged.

    Args:
        channel: the normalisation and its training statistics.
        volume: (D, H, W) of any real dtype, the whole volume.
        mask: (D, H, W) bool for 'zscore_nonzero', see `volseg.data.grid.nonzero`.
        box: the part of the volume that planes are taken from; None for the whole volume.

    Raises:
        InputError: 'rgb' with intensities below 0 or above 255.
    """
    reference, *numbers = _shift_and_scale(channel, volume, mask)
    shift, scale = map(np.float32, numbers)
    cut = tuple(slice(*span) for span in box or ())
    part = volume[cut]
    within = mask[cut] if mask is not None and channel.normalisation == "zscore_nonzero" else None

    def normalise(start: int, stop: int) -> np.ndarray:
        values = reference.values(part[start:stop])
        if channel.normalisation == "ct" and channel.clip is not None:
            np.clip(values, *(limit - reference.offset for limit in channel.clip), out=values)
        where = True if within is None else within[start:stop]
        if within is not None and reference != PLAIN:
            values[~where] = 0
        np.subtract(values, shift, out=values, where=where)
        np.divide(values, scale, out=values, where=where)
        return values

    return normalise


def device_normaliser(
    channel: Channel, volume: np.ndarray, box: Box | None, device: torch.device
) -> Callable[[int, int], torch.Tensor] | None:
    """`normaliser` that gives planes on a device and computes there, from intensities as stored, equal bit for bit.

    None where float32 cannot hold the intensities, or a mask is needed: then the host normalises.
    """
    reference, *numbers = _shift_and_scale(channel, volume, None)
    if reference != PLAIN or channel.normalisation == "zscore_nonzero" or volume.dtype not in _ON_DEVICE:
        return None
    # As tensors: torch multiplies by the reciprocal of a number, which rounds otherwise.
    shift, scale = (torch.tensor(number, dtype=torch.float32, device=device) for number in numbers)
    part = volume[tuple(slice(*span) for span in box or ())]

    def normalise(start: int, stop: int) -> torch.Tensor:
        values = to_device(part[start:stop], device).to(torch.float32)
        if channel.normalisation == "ct" and channel.clip is not None:
            values = values.clamp(*channel.clip)
        return (values - shift).div_(scale)

    return normalise


def image_to_network(
    channels: Sequence[np.ndarray],
    geometry: Geometry,
    plan: Plan,
    body: bool = False,
    device: torch.device = CPU,
) -> tuple[torch.Tensor, GridMap]:
    """Preprocess a scan: orient, crop, normalise and resample it to network space.

    Args:
        channels: one (I, J, K) array per channel of the plan, of any real dtype.
        geometry: of the channels.
        plan: of the model.
        body: whether to crop to the bounding box of the body, see `volseg.data.grid.body`. Intensities are normalised
            as without the crop.
        device: to resample on.

    Returns:
        (C, D, H, W) float32, on `device` if it has room for it in addition to windows, else on the CPU; and the mapping
        between image space and network space.

    Raises:
        InputError: the scan's intensities do not fit the plan's normalisation.
    """
    grid = network_grid(channels, geometry, plan)
    volumes = [grid.into(array) for array in channels]
    box = None
    if body:
        box = body_box(volumes[0], grid.spacing_mm)
        grid = map_to_network(geometry, plan, _moved(box, grid.box))
    masked = any(channel.normalisation == "zscore_nonzero" for channel in plan.channels)
    mask = filled_nonzero(volumes) if masked else None
    separate = separate_axis(plan.image_resampling, grid.spacing_mm, plan.spacing_of(grid.spacing_mm))

    result = empty_volume((len(volumes), *grid.shape), device)

    def resample(channel: Channel, volume: np.ndarray, out: torch.Tensor) -> None:
        on_device = device_normaliser(channel, volume, box, device) if device.type == "cuda" else None
        normalise = on_device or normaliser(channel, volume, mask, box)

        def read(start: int, stop: int) -> torch.Tensor:
            planes = normalise(start, stop)
            return to_device(planes, device) if isinstance(planes, np.ndarray) else planes

        resample_slabs(read, grid.box_shape, grid.shape, plan.image_resampling, separate, out)

    for channel, volume, out in zip(plan.channels, volumes, result, strict=True):
        resample(channel, volume, out)
    return result, grid


def network_grid(channels: Sequence[np.ndarray], geometry: Geometry, plan: Plan) -> GridMap:
    """The mapping from a scan to the network space of a plan, with the plan's crop.

    Args:
        channels: one (I, J, K) array per channel of the plan, of any real dtype.
        geometry: of the channels.
        plan: of the model.
    """
    grid = map_to_network(geometry, plan)
    if plan.crop == "none":
        return grid
    return map_to_network(geometry, plan, nonzero_box([grid.into(array) for array in channels]))


def label_to_network(label: np.ndarray, grid: GridMap, plan: Plan) -> torch.Tensor:
    """Resample a label image (I, J, K) to the network space of its scan: (D, H, W), see `classes_of`.

    Args:
        label: the values of the label image.
        grid: of the scan, from `image_to_network` or `network_grid`, because the crop depends on the scan.
        plan: of the model.
    """
    classes = torch.from_numpy(np.ascontiguousarray(grid.into(classes_of(label, plan))))
    if plan.label_resampling == "nearest":
        return resample_nearest(classes, grid.shape)
    return resample_classes(classes, grid.shape, Resampling(antialias=plan.image_resampling.antialias))


def classes_of(label: np.ndarray, plan: Plan) -> np.ndarray:
    """Class indices of label values, same shape; values that the plan does not have become background.

    Index i stands for `plan.stored_values[i - 1]`: class i for plain labels; `training_target` converts it to regions.
    The dtype is uint8, or int16 if there are more than 254 values or voxels may be `IGNORED`.
    """
    # PyTorch reads 255 in uint8 as IGNORED.
    small = len(plan.stored_values) < 255 and plan.ignore is None
    table = np.zeros(1 << 16, dtype=np.uint8 if small else np.int16)
    table[list(plan.stored_values)] = np.arange(1, len(plan.stored_values) + 1)
    if plan.ignore is not None:
        table[plan.ignore] = IGNORED
    classes: np.ndarray = table[label]
    return classes


def training_target(classes: torch.Tensor, plan: Plan) -> torch.Tensor:
    """The target of the loss.

    Args:
        classes: (B, D, H, W), see `classes_of`.
        plan: of the network.

    Returns:
        The same for plain labels; for regions (B, K, D, H, W) int8: 1 inside, 0 outside, `IGNORED` unchanged.
    """
    if not plan.regions:
        return classes
    # One row per region. IGNORED, used as an index, counts from the end and selects the last column.
    inside = torch.zeros(len(plan.labels), len(plan.stored_values) + 2, dtype=torch.int8)
    inside[:, IGNORED] = IGNORED
    for row, region in zip(inside, plan.labels, strict=True):
        row[classes_of(np.array(region.stored_values), plan).tolist()] = 1
    return inside[:, classes.long()].movedim(0, 1).contiguous()


def _moved(box: Box, outer: Box) -> Box:
    """A box given relative to the start of `outer`, in the coordinates of `outer`."""
    d, h, w = ((low + start, low + stop) for (start, stop), (low, _) in zip(box, outer, strict=True))
    return d, h, w


def _shift_and_scale(channel: Channel, volume: np.ndarray, mask: np.ndarray | None) -> tuple[Reference, float, float]:
    """What intensities are relative to; the number to subtract then, and the one to divide the difference by."""
    match channel.normalisation:
        case "zscore" | "zscore_nonzero":
            within = mask if channel.normalisation == "zscore_nonzero" else None
            mean, std = mean_and_std(volume, within)
            reference = reference_for(volume, within, mean, std)
            if reference != PLAIN:
                mean, std = mean_and_std(volume, within, reference)
            return reference, mean, _divisor(std)
        case "ct":
            # The validator of Channel requires both for this normalisation.
            assert channel.mean is not None
            assert channel.std is not None
            if abs(channel.mean) > LARGE_OFFSET * channel.std:
                return Reference(float(channel.mean)), 0.0, _divisor(channel.std)
            return PLAIN, channel.mean, _divisor(channel.std)
        case "rescale":
            low, high = volume.min().item(), volume.max().item()
            reference = reference_for(volume, None, float(low), float(high - low))
            return reference, (low - reference.offset) / reference.unit, _divisor((high - low) / reference.unit)
        case "rgb":
            low, high = float(volume.min()), float(volume.max())
            if low < 0 or high > 255:
                raise InputError(
                    f"Channel {channel.name!r} has intensities from {low:g} to {high:g}, expected those of an RGB "
                    "image, 0 to 255; give the 8-bit image."
                )
            return PLAIN, 0.0, 255.0
    return PLAIN, 0.0, 1.0


def _divisor(deviation: float) -> float:
    """`deviation`, or 1 for constant intensities. The threshold is tiny: a scan in SI units may lie below 1e-8."""
    return deviation if deviation > _SMALLEST_DIVISOR else 1.0
