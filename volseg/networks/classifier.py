"""The U-Net's encoder as a classifier of volumes and clips."""

from typing import Any

from torch import Tensor, nn

from volseg.config import NetworkConfig
from volseg.networks.blocks import config_from, encoder_stages, initialise


class Classifier(nn.Module):
    """Encoder, global average pooling, one linear layer; `volseg.training` shows how to train it.

    Args:
        config: as for a `UNet`; the settings of the decoder and of deep supervision are not used.
        options: as for a `UNet`.

    Raises:
        ConfigError: invalid options.
    """

    def __init__(self, config: NetworkConfig | None = None, **options: Any) -> None:
        super().__init__()
        config = config_from(config, options)
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
