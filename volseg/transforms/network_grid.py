"""Thin MONAI transforms around the functions that read a case and resample it to network space."""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

from volseg.config import Plan
from volseg.data.cases.cache import read_for_plan
from volseg.data.cases.dataset import TrainingCase
from volseg.data.grid.preprocess import image_to_network, label_to_network, network_grid
from volseg.data.io.formats import stem_of


class ReadCased(MapTransform):  # type: ignore[misc]
    """Read and check a training case: paths become `Scan` objects in the stored dtype.

    Args:
        image_key: entry with one path, or a sequence of paths, one per channel.
        label_key: entry with the path of the reference label image.
        plan: its channels and labels are required of the case.
    """

    def __init__(self, image_key: str, label_key: str, plan: Plan) -> None:
        MapTransform.__init__(self, (image_key, label_key))
        self.plan = plan

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A dict with scans in place of paths."""
        image_key, label_key = self.keys
        images, label = data[image_key], Path(data[label_key])
        paths = [images] if isinstance(images, str | Path) else images
        case = TrainingCase(stem_of(label), tuple(Path(path) for path in paths), label)
        scan, reference = read_for_plan(case, self.plan)
        return {**data, image_key: scan, label_key: reference}


class ImageToNetworkd(MapTransform):  # type: ignore[misc]
    """Orient, crop, normalise and resample: a `Scan` becomes a tensor (C, D, H, W) float32."""

    def __init__(self, keys: KeysCollection, plan: Plan) -> None:
        MapTransform.__init__(self, keys)
        self.plan = plan

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A dict with tensors in place of scans."""
        out = dict(data)
        for key in self.keys:
            out[key], _ = image_to_network(data[key].channels, data[key].geometry, self.plan)
        return out


class LabelToNetworkd(MapTransform):  # type: ignore[misc]
    """Orient and resample to the nearest voxel: a label `Scan` becomes (1, D, H, W) class indices, uint8 or int16.

    Args:
        keys: entries with label scans.
        image_key: entry with their `Scan`, which determines the crop; so use this before `ImageToNetworkd`.
        plan: defines the grid and the class indices.
    """

    def __init__(self, keys: KeysCollection, image_key: str, plan: Plan) -> None:
        MapTransform.__init__(self, keys)
        self.image_key = image_key
        self.plan = plan

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A dict with tensors in place of label images."""
        out = dict(data)
        scan = data[self.image_key]
        grid = network_grid(scan.channels, scan.geometry, self.plan)
        for key in self.keys:
            out[key] = label_to_network(data[key].channels[0], grid, self.plan)[None]
        return out
