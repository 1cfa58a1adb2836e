"""The MONAI pipelines of training, and volseg's own transforms in them."""

from volseg.system import some_user_name

# MONAI asks for the user's name when it is imported.
with some_user_name():
    import monai.config  # noqa: F401

from volseg.transforms.intensity import RandBlurd, RandGammad, RandLowResolutiond
from volseg.transforms.network_grid import ImageToNetworkd, LabelToNetworkd, ReadCased
from volseg.transforms.pipelines import Transform, augmentation, cropping, preprocessing
from volseg.transforms.spatial import RandAffinePatchd

__all__ = [
    "ImageToNetworkd",
    "LabelToNetworkd",
    "RandAffinePatchd",
    "RandBlurd",
    "RandGammad",
    "RandLowResolutiond",
    "ReadCased",
    "Transform",
    "augmentation",
    "cropping",
    "preprocessing",
]
