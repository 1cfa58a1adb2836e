"""Sliding windows around any torch module, compared with one pass over the whole volume."""

import torch
from torch import nn

from volseg.inference import sliding_window

torch.manual_seed(0)
network = nn.Sequential(  # any module from (b, C, d, h, w) to (b, K, d, h, w)
    nn.Conv3d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv3d(8, 4, 5, padding=2)
).eval()
volume = torch.rand(1, 48, 40, 44)  # (C, D, H, W)

windowed = sliding_window(volume, network, patch_size=(24, 24, 24), overlap=0.5)  # (K, D, H, W) float32
with torch.no_grad():
    whole = network(volume[None])[0]
equal = (windowed.argmax(0) == whole.argmax(0)).double().mean().item()
print(f"{equal:.2%} of the voxels have the same class")

flipped = sliding_window(volume, network, (24, 24, 24), mirror_axes=(0, 1))  # averaged over 4 flips
print(f"test-time flips change the logits by {(flipped - windowed).abs().mean():.3f} on average")
