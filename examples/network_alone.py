"""A U-Net by itself: its options, a forward pass, and what (2+1)D blocks save against Conv3d."""

import torch

from volseg.networks import UNet

patch = torch.rand(1, 1, 32, 64, 64)  # (B, C, D, H, W); D is the through-plane axis
options = {"in_channels": 1, "classes": 3, "features": [16, 32, 64, 128]}
networks = {
    "Conv3d": UNet(**options),
    "(2+1)D light": UNet(block="conv2plus1d", mid="light", **options),
    "(2+1)D matched": UNet(block="conv2plus1d", mid="matched", **options),
    "residual encoder": UNet(encoder="residual", **options),
}
parameters = {name: sum(one.numel() for one in network.parameters()) for name, network in networks.items()}
for name, network in networks.items():
    with torch.no_grad():
        logits = network.eval()(patch)  # (B, classes, D, H, W)
    ratio = parameters[name] / parameters["Conv3d"]
    print(f"{name}: logits {tuple(logits.shape)}, {parameters[name]:,} parameters, {ratio:.2f} of Conv3d")

outputs = networks["Conv3d"].train()(patch)  # in training one per decoder stage, finest first
print("deep supervision:", [tuple(output.shape[2:]) for output in outputs])
