"""The U-Net's encoder as a classifier of volumes and clips."""

from torch import Tensor, nn

from volseg.config import NetworkConfig
from volseg.networks.blocks import encoder_stages, initialise


class Classifier(nn.Module):
    """Encoder, average over all voxels, one linear layer; `volseg.training` shows how to train it.

    Args:
        config: as for a `UNet`; what it says about decoder and deep supervision is not used.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.encoder = encoder_stages(config)
        self.head = nn.Linear(config.features[-1], config.classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Compute class logits.

        Args:
            x: a volume (B, in_channels, D, H, W), or a clip with time as D; any size.

        Returns:
            Logits (B, classes).
        """
        for stage in self.encoder:
            x = stage(x)
        logits: Tensor = self.head(x.mean(dim=(2, 3, 4)))
        return logits
