"""Loss functions and modules for training a network of one's own; see `volseg.training.losses`."""

from volseg.training.losses import (
    LOSSES,
    SegmentationLoss,
    classification_loss,
    cross_entropy,
    dice_and_cross_entropy,
    dice_loss,
    soft_dice,
)

__all__ = [
    "LOSSES",
    "SegmentationLoss",
    "classification_loss",
    "cross_entropy",
    "dice_and_cross_entropy",
    "dice_loss",
    "soft_dice",
]
