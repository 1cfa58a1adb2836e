"""The state of a training run, and its checkpoint, from which the run resumes exactly.

A checkpoint is one .safetensors file, written whole or not at all: weights, EMA of the weights and optimiser moments;
its header holds the step and the seconds spent. It needs no random state, because each random sample is a function of
the seed and the sample's number. (A resumed run in fp16 on a GPU starts with a new loss scale.)
"""

import copy
import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import torch
from isal.isal_zlib import crc32
from safetensors.torch import load_file
from torch import nn

from volseg.config import TrainingConfig
from volseg.errors import InputError
from volseg.files import access_to, open_to_read, utf8_path
from volseg.modelfile import save_tensors
from volseg.training.moments import MUON, OptimiserFactory, build_optimiser, optimiser_name, restore_state, stored_state
from volseg.training.optimisers import Muon
from volseg.training.ranks import SINGLE_PROCESS, Ranks

FILE_NAME = "state.safetensors"
# Characters of a reason in a message.
LONGEST = 300
# Prefixes of the tensors in a checkpoint. The EMA of the weights is called "average" in the checkpoints of all earlier
# versions, which must stay readable.
NETWORK, EMA, MOMENTS, START = "network.", "average.", "optimizer.", "start."


class TrainingState:
    """A network, the EMA (exponential moving average) of its weights, its optimiser, and the progress of the run.

    Args:
        network: to train.
        config: learning rate and weight decay of the optimiser.
        ranks: see below.
        data: identifies the training cases; a checkpoint with another value is rejected. None: those of any.
        optimiser: makes the optimiser, see `volseg.training.moments.OptimiserFactory`.

    Attributes:
        network: trained in place.
        ranks: the processes that train it together, each with its own copy of the state.
        ema: the same network with the EMA of the weights; this is the model that is saved.
        optimizer: Muon for the network, or what `optimiser` made.
        start: weights by name that the network is pulled to, see `pull_to_start`; empty for none.
        scales: of each of its groups, the peak of the learning rate as a multiple of `config.learning_rate`.
        step: finished optimiser steps.
        seconds: wall-clock seconds in the training loop, in total over all resumptions.
        ended: whether a callback has ended the run early.
    """

    def __init__(
        self,
        network: nn.Module,
        config: TrainingConfig,
        ranks: Ranks = SINGLE_PROCESS,
        data: str | None = "",
        optimiser: OptimiserFactory = Muon,
    ) -> None:
        self.network = network
        self.ema = copy.deepcopy(network).eval().requires_grad_(False)
        self.ranks = ranks
        self.data = data
        self.optimizer = build_optimiser(optimiser, network, config.learning_rate, config.weight_decay)
        self.scales = [float(group["lr"]) / config.learning_rate for group in self.optimizer.param_groups]
        self.start: dict[str, torch.Tensor] = {}
        self.step = 0
        self.seconds = 0.0
        self.ended = False

    @torch.no_grad()
    def pull_to_start(self, fraction: float) -> None:
        """Move the weights that `start` has towards it, by a fraction of their distance.

        This is weight decay towards the model that a run starts from instead of 0 (L2-SP; Li et al. 2018, arXiv
        1802.01483), decoupled from the gradient as in AdamW: a few cases do not undo what many have taught.
        """
        if self.start and fraction:
            weights = dict(self.network.named_parameters())
            torch._foreach_lerp_([weights[name] for name in self.start], list(self.start.values()), min(fraction, 1.0))

    @torch.no_grad()
    def update_ema(self, fraction: float, decay: float | None = None) -> None:
        """Update the EMA after a step; its window grows with the run, so that the random initial weights fade quickly.

        Karras et al. 2024, arXiv 2312.02696, section 3.1: with a decay of (1 - 1 / step) ** (g + 1) the weights after
        step s count in proportion to s ** g, and their mean age is 1 / (g + 2) of the steps so far.

        Args:
            fraction: the mean age, 0 to 0.5; 0: the EMA equals the weights.
            decay: the decay of all steps but the first few, whatever the fraction; None: the one above.
        """
        if decay is None:
            decay = (1 - 1 / self.step) ** (1 / fraction - 1) if fraction else 0.0
        else:
            decay = min(decay, (1 + self.step) / (10 + self.step))
        pairs = zip(self.ema.state_dict(keep_vars=True).values(), self.network.state_dict().values(), strict=True)
        weights: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        # A tensor that has several names, such as tied weights, is updated once.
        for mean, new in {id(mean): (mean, new) for mean, new in pairs}.values():
            if not mean.is_floating_point():
                mean.copy_(new)
            elif isinstance(mean, nn.Parameter):
                weights[0].append(mean)
                weights[1].append(new)
            else:
                # Infinite values, as in a mask of attention, have no mean.
                finite = mean.isfinite() & new.isfinite()
                mean.copy_(torch.where(finite, mean.lerp(new, 1 - decay), new))
        if weights[0]:
            # All at once: on a GPU starting an operation takes longer than the operation on a small tensor.
            torch._foreach_lerp_(*weights, 1 - decay)

    def save(self, folder: Path) -> None:
        """Write the checkpoint, whole or not at all."""
        tensors = {f"{NETWORK}{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"{EMA}{name}": value for name, value in self.ema.state_dict().items()}
        moments, document = stored_state(self.optimizer)
        tensors |= {f"{MOMENTS}{name}": value for name, value in moments.items()}
        tensors |= {f"{START}{name}": value for name, value in self.start.items()}
        stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        progress: dict[str, Any] = {"step": self.step, "seconds": self.seconds, "data": self.data}
        progress["optimizer"] = optimiser_name(self.optimizer)
        progress |= {"state": document} if document else {}
        progress["crc32"] = _checksum(stored)
        save_tensors(folder / FILE_NAME, stored, {"state": json.dumps(progress)})

    def load(self, folder: Path, optimiser: bool = True) -> None:
        """Load the checkpoint in `folder`; without `optimiser`, to train no further, all but the optimiser's state.

        Raises:
            InputError: the file cannot be read, is damaged, or belongs to another network or other training cases.
        """
        path = folder / FILE_NAME
        # The library calls a file that the disk cannot open a missing one.
        with access_to(path, f"The checkpoint {path}"), open_to_read(path):
            pass
        try:
            if not path.is_file():
                raise ValueError("it is not a file")
            progress = _progress(path)
            if optimiser:
                self._require_same_optimiser(progress.get("optimizer"))
            if self.data is not None and progress.get("data", self.data) != self.data:
                raise ValueError("the training cases have changed since")
            with utf8_path(path) as readable:
                tensors = load_file(readable)
            if progress.get("crc32", found := _checksum(tensors)) != found:
                raise ValueError("its numbers have another checksum than when it was written")
            self.network.load_state_dict(_without_prefix(tensors, NETWORK))
            self.ema.load_state_dict(_without_prefix(tensors, EMA))
            if optimiser:
                restore_state(self.optimizer, _without_prefix(tensors, MOMENTS), progress.get("state", {}))
                self.start = self._start_of(_without_prefix(tensors, START))
            self.step, self.seconds = _spent(progress["step"], progress["seconds"])
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            message = f"The checkpoint {path} does not fit this run: {_short(reason)}. Start again with --overwrite."
            raise InputError(message) from error

    def _start_of(self, stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The weights that the network is pulled to, on its device."""
        weights = dict(self.network.named_parameters())
        if any(name not in weights or weights[name].shape != value.shape for name, value in stored.items()):
            raise ValueError("the weights that the run started from are those of another network")
        return {name: value.to(weights[name]) for name, value in stored.items()}

    def _require_same_optimiser(self, stored: Any) -> None:
        found = optimiser_name(self.optimizer)
        if stored == found:
            return
        if stored != MUON and "." not in str(stored):
            raise ValueError("it was written by a volseg version with another optimiser")
        raise ValueError(
            f"it was written with the optimiser {stored}, but this run has {found}, so give that one as optimiser= (of "
            "volseg's own, muon, give none)"
        )


def reached(folder: Path) -> tuple[int, float] | None:
    """The finished steps and the seconds spent of the checkpoint in `folder`; None without one that tells them."""
    with suppress(OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError):
        progress = _progress(folder / FILE_NAME)
        return _spent(progress["step"], progress["seconds"])
    return None


def _progress(path: Path) -> dict[str, Any]:
    """What the header of a checkpoint states of the run."""
    with utf8_path(path) as readable, safetensors.safe_open(readable, framework="np") as handle:
        return dict(json.loads((handle.metadata() or {})["state"]))


def _spent(step: Any, seconds: Any) -> tuple[int, float]:
    """The finished steps and the seconds spent that a checkpoint states."""
    if type(step) is not int or step < 0 or type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
        raise ValueError("it does not state its step and its seconds as numbers")
    return step, float(seconds)


def _checksum(tensors: dict[str, torch.Tensor]) -> int:
    """The CRC-32 of the bytes of tensors on the CPU, in the order of their names."""
    checksum = 0
    for name in sorted(tensors):
        checksum = crc32(tensors[name].reshape(-1).view(torch.uint8).numpy(), checksum)
    return checksum


def _short(reason: str) -> str:
    """An error of torch as a part of a sentence: without the list of all tensors, without its full stop."""
    text = " ".join(reason.split())
    return (text if len(text) <= LONGEST else f"{text[:LONGEST]} ...").rstrip(".")


def has_checkpoint(folder: Path) -> bool:
    """Whether `folder` holds a checkpoint."""
    return (folder / FILE_NAME).exists()


def _without_prefix(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names start with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
