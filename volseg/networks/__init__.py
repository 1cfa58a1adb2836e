"""The networks, as plain torch modules on tensors (B, C, D, H, W); D is the through-plane axis.

>>> import torch
>>> from volseg.networks import UNet
>>> network = UNet(in_channels=1, classes=3, features=[8, 16, 32])
>>> network.eval()(torch.zeros(1, 1, 16, 32, 32)).shape
torch.Size([1, 3, 16, 32, 32])
"""

from volseg.config import NetworkConfig
from volseg.networks.blocks import Conv2Plus1d
from volseg.networks.build import NETWORKS, build_network, find_network
from volseg.networks.classifier import Classifier
from volseg.networks.cpu.instance_norm import InstanceNorm
from volseg.networks.ensemble import Ensemble
from volseg.networks.loading import load_network, open_network
from volseg.networks.profile import Profile, StageProfile, compare_blocks, profile_network
from volseg.networks.unet import UNet

__all__ = [
    "NETWORKS",
    "Classifier",
    "Conv2Plus1d",
    "Ensemble",
    "InstanceNorm",
    "NetworkConfig",
    "Profile",
    "StageProfile",
    "UNet",
    "build_network",
    "compare_blocks",
    "find_network",
    "load_network",
    "open_network",
    "profile_network",
]
