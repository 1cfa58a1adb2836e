"""A network of your own: three convolutions. Its model file holds no code, so it is loaded with the same class."""

from pathlib import Path

from torch import nn

import volseg

DATASET = Path(__file__).parents[1] / "data_samples" / "phantoms"


class ThreeConvolutions(nn.Module):
    """Made from the plan of the run, which has `network.in_channels`, `network.classes` and `patch_size`."""

    def __init__(self, plan):
        super().__init__()
        self.first = nn.Conv3d(plan.network.in_channels, 8, 5, padding=2)
        self.second = nn.Conv3d(8, 8, 5, padding=2)
        self.last = nn.Conv3d(8, plan.network.classes, 1)

    def forward(self, x):
        """From (B, C, D, H, W) to logits (B, K, D, H, W)."""
        return self.last(self.second(self.first(x).relu()).relu())


options = {"steps": 20, "overrides": ["plan.patch_size=[16, 32, 32]"]}
run = volseg.train(DATASET, "runs/three", network=ThreeConvolutions, **options)
segmenter = volseg.Segmenter.load(run / "model.safetensors", device="cpu", network=ThreeConvolutions)
print(segmenter(DATASET / "imagesTs" / "phantom_013.nii.gz"))
