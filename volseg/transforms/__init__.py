"""The MONAI pipelines of training, and volseg's own transforms in them."""

from volseg.transforms.intensity import RandBlurd, RandLowResolutiond
from volseg.transforms.network_grid import ImageToNetworkd, LabelToNetworkd, ReadCased
from volseg.transforms.pipelines import Transform, augmentation, cropping, preprocessing
from volseg.transforms.spatial import RandAffinePatchd

__all__ = [
    "ImageToNetworkd",
    "LabelToNetworkd",
    "RandAffinePatchd",
    "RandBlurd",
    "RandLowResolutiond",
    "ReadCased",
    "Transform",
    "augmentation",
    "cropping",
    "preprocessing",
]
