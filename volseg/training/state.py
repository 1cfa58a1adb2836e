"""What a training run has to remember to go on exactly, and its checkpoint on disk.

A checkpoint is one .safetensors file, written whole: weights, averaged weights, optimiser moments, and in the
header the step and the seconds spent. There is no random state to keep: every sample is drawn from the seed
and its own number. (fp16 on a GPU begins with a fresh loss scale.)
"""

import copy
import json
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import nn

from volseg.config import TrainingConfig
from volseg.errors import InputError
from volseg.modelfile import save_tensors
from volseg.training.optimisers import Muon
from volseg.training.ranks import ALONE, Ranks

FILE_NAME = "state.safetensors"
# A checkpoint says whose moments it holds: those of another optimiser mean nothing to this one.
OPTIMIZER = "muon"


class TrainingState:
    """A network, its running average, its optimiser, and how far they are.

    Args:
        network: to train.
        config: rates of the optimiser.
        ranks: see below.
        data: stands for the cases it is trained on; a checkpoint of others is refused. Empty where nobody says.

    Attributes:
        network: trained in place.
        ranks: the processes that train it together, each with its own copy of all this.
        average: same network with the exponential average of the weights; the model that is kept.
        optimizer: Muon over the network.
        step: finished optimiser steps.
        seconds: wall-clock seconds spent in the loop, over all resumptions.
    """

    def __init__(self, network: nn.Module, config: TrainingConfig, ranks: Ranks = ALONE, data: str = "") -> None:
        self.network = network
        self.ema = copy.deepcopy(network).eval().requires_grad_(False)
        self.ranks = ranks
        self.data = data
        self.optimizer = Muon(network, config.learning_rate, config.weight_decay)
        self.step = 0
        self.seconds = 0.0

    @torch.no_grad()
    def update_ema(self, decay: float) -> None:
        """Move the average towards the network; early steps count more, so that the random start is soon forgotten."""
        decay = min(decay, (1 + self.step) / (10 + self.step))
        for kept, new in zip(self.ema.state_dict().values(), self.network.state_dict().values(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(new, 1 - decay)
            else:
                kept.copy_(new)

    def save(self, folder: Path) -> None:
        """Write the checkpoint, whole or not at all."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.ema.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        progress = {"step": self.step, "seconds": self.seconds, "optimizer": OPTIMIZER, "data": self.data}
        save_tensors(folder / FILE_NAME, tensors, {"state": json.dumps(progress)})

    def load(self, folder: Path) -> None:
        """Take up the checkpoint in `folder`.

        Raises:
            InputError: the file is damaged, or belongs to another network or other cases.
        """
        path = folder / FILE_NAME
        try:
            with safetensors.safe_open(path, framework="np") as handle:
                progress = json.loads(handle.metadata()["state"])
            if progress.get("optimizer") != OPTIMIZER:
                raise ValueError("it was written by a volseg with another optimiser")
            if progress.get("data", self.data) != self.data:
                raise ValueError("the cases to train on have changed since")
            tensors = load_file(path)
            self.network.load_state_dict(_part(tensors, "network."))
            self.ema.load_state_dict(_part(tensors, "average."))
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
            message = f"The checkpoint {path} does not fit this run: {error}. Start again with --overwrite."
            raise InputError(message) from error
        moments: dict[int, dict[str, Any]] = {}
        for name, value in _part(tensors, "optimizer.").items():
            index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.step, self.seconds = int(progress["step"]), float(progress["seconds"])


def has_checkpoint(folder: Path) -> bool:
    """Whether `folder` holds a checkpoint."""
    return (folder / FILE_NAME).exists()


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
