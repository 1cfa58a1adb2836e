"""A scan from any object that Python users may pass: a path, an image object, or an array with an affine."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from volseg.data.io.choice import ONLY, Choice
from volseg.data.io.inputs import Case
from volseg.data.io.reading import (
    Scan,
    made_upright,
    read_channels,
    read_scan,
    scan_from_array,
    scan_from_nibabel,
    scan_from_sitk,
)
from volseg.errors import InputError, UsageError
from volseg.files import given_path

# Of a value of a SimpleITK image, of whatever type it is.
_SITK_BYTES = 4


def as_scan(scan: Any, channels: int, choice: Choice = ONLY) -> Scan:
    """Read a scan, or convert an image object to one, with all checks.

    Args:
        scan: a path, a `Case`, a nibabel or SimpleITK image, (array or tensor (I, J, K) or (I, J, K, C), 4 x 4 affine
            to RAS+ mm), a tensor (C, I, J, K) or (I, J, K) with an `affine` to RAS+ mm, such as MONAI's MetaTensor, or
            a `Scan`.
        channels: expected number.
        choice: which series and volume of a path, and whether tilted slices are made upright; a `Case` has its own.

    Raises:
        UsageError: another type, or a choice within an object that is one image.
        InputError: the scan cannot be used; see `volseg.data.io.checks`.
    """
    if isinstance(scan, Scan):
        return scan
    if isinstance(scan, Case):
        return read_channels(scan.paths, channels, replace(scan.choice, modality=choice.modality))
    if isinstance(scan, str | Path):
        return read_scan(given_path(scan), channels, choice)
    if choice.series is not None or choice.volume is not None:
        raise UsageError("series and volume choose within a file. Give one volume as an array or image.")
    found = _from_object(scan, channels)
    return made_upright(found) if choice.untilt else found


def paths_of(scan: Any) -> Sequence[Path]:
    """The files of a scan, one per channel, or its folder; none of an array or image object."""
    return scan.paths if isinstance(scan, Case) else [given_path(scan)] if isinstance(scan, str | Path) else []


def size_in_memory(scan: Any) -> int:
    """The bytes of the voxels of an array or image object, roughly; 0 for what cannot be segmented."""
    if isinstance(scan, Scan):
        return sum(channel.nbytes for channel in scan.channels)
    if hasattr(scan, "GetDirection"):
        return math.prod(map(int, scan.GetSize())) * int(scan.GetNumberOfComponentsPerPixel()) * _SITK_BYTES
    image = scan[0] if isinstance(scan, tuple) and scan else scan
    of_file = getattr(image, "get_data_dtype", None)
    size = of_file().itemsize if of_file else getattr(getattr(image, "dtype", None), "itemsize", 0)
    return math.prod(getattr(image, "shape", ())) * int(size)


def _from_object(scan: Any, channels: int) -> Scan:
    """An image object; those of SimpleITK and MONAI are recognised without importing them."""
    if isinstance(scan, tuple) and len(scan) == 2:
        return scan_from_array(_on_host(scan[0]), _on_host(scan[1]), channels=channels)
    if isinstance(scan, nibabel.spatialimages.SpatialImage):
        return scan_from_nibabel(scan, channels=channels)
    if hasattr(scan, "GetDirection"):
        return scan_from_sitk(scan, channels=channels)
    if hasattr(scan, "affine") and hasattr(scan, "detach"):
        return _from_meta_tensor(scan, channels)
    raise UsageError(
        f"Cannot segment a {type(scan).__name__}: expected a path, a nibabel or SimpleITK image, a MONAI MetaTensor, "
        "or (array, affine)."
    )


def _from_meta_tensor(tensor: Any, channels: int) -> Scan:
    """A tensor with an affine; if it has four axes, the first is the channel, as in MONAI."""
    array, affine = _on_host(tensor), _on_host(tensor.affine)
    if array.ndim == 4:
        if len(array) != channels:
            raise InputError(
                f"The tensor has shape {array.shape}, so {len(array)} channels, but the model has {channels}. "
                "Give (C, I, J, K) with exactly the channels of the model."
            )
        array = np.moveaxis(array, 0, -1)
    return scan_from_array(array, affine, channels=channels)


def _on_host(value: Any) -> Any:
    """A tensor as a NumPy array, copied only from a GPU or from bfloat16, which NumPy lacks; others as they are."""
    if not hasattr(value, "detach"):
        return value
    tensor = value.detach().cpu()
    tensor = tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor
    return tensor.float().numpy() if str(tensor.dtype) == "torch.bfloat16" else tensor.numpy()
