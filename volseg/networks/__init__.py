"""The networks, as plain torch modules on tensors (B, C, D, H, W); D is the through-plane axis."""

from volseg.networks.blocks import Conv2Plus1d
from volseg.networks.classifier import Classifier
from volseg.networks.ensemble import Ensemble
from volseg.networks.norms import InstanceNorm
from volseg.networks.profile import Profile, StageProfile, compare_blocks, profile_network
from volseg.networks.unet import UNet

__all__ = [
    "Classifier",
    "Conv2Plus1d",
    "Ensemble",
    "InstanceNorm",
    "Profile",
    "StageProfile",
    "UNet",
    "compare_blocks",
    "profile_network",
]
