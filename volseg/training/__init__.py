"""Losses, schedule, state and the loop; data and validation come in as plain callables.

`fit` trains any network on any batches. Here a (2+1)D classifier learns from clips (B, 1, T, H, W) whether a disc
stands still (class 0) or moves (class 1); the model is the EMA of its weights:

>>> from itertools import count
>>> import numpy as np
>>> import torch
>>> from volseg.config import NetworkConfig, TrainingConfig
>>> from volseg.data.cases.phantom import make_clip
>>> from volseg.networks import Classifier
>>> from volseg.training import Budget, TrainingState, classification_loss, fit
>>> def clips(number, seeds=8):
...     first = number * seeds
...     both = [make_clip(seed, moving) for seed in range(first, first + seeds) for moving in (False, True)]
...     return {"image": torch.from_numpy(np.stack(both))[:, None], "label": torch.tensor([0, 1] * seeds)}
>>> _ = torch.manual_seed(0)
>>> network = NetworkConfig(
...     classes=2, block="conv2plus1d", features=(8, 16), encoder_blocks=(1, 2), decoder_blocks=(1,),
...     kernels=((3, 3, 3),) * 2, strides=((1, 1, 1), (2, 2, 2)),
... )
>>> config = TrainingConfig(learning_rate=0.03, ema_fraction=0.1)
>>> state = TrainingState(Classifier(network), config)
>>> fit(state, map(clips, count()), Budget(steps=60), config, loss=classification_loss)
True
>>> unseen = clips(1000, seeds=100)
>>> right = state.ema(unseen["image"]).argmax(1) == unseen["label"]
>>> right.float().mean().item() > 0.95
True
"""

from volseg.training.budget import Budget
from volseg.training.loop import fit
from volseg.training.losses import SegmentationLoss, classification_loss, supervised_loss
from volseg.training.state import TrainingState

__all__ = ["Budget", "SegmentationLoss", "TrainingState", "classification_loss", "fit", "supervised_loss"]
