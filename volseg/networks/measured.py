"""The memory of feature maps of a network that volseg has not built, measured while it computes one window."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from volseg.config import Plan
from volseg.networks.own import check_window


def window_bytes(network: nn.Module, plan: Plan, dtype: torch.dtype) -> int | None:
    """Bytes of the tensors that are alive at once, at the most, while a network computes a window; without its weights.

    None for volseg's U-Net, whose memory follows from the plan: see `volseg.networks.footprint`.

    What the libraries below torch take for a convolution is not counted; it is about as much as its input and output.

    Raises:
        UsageError: the network cannot take a window of the plan, or does not return logits.
    """
    if plan.network.architecture == "unet":
        return None
    with _Alive() as alive:
        check_window(network, plan, dtype)
    most: int = alive.most
    return most


class _Alive(TorchDispatchMode):
    """Counts the bytes of all tensors that torch makes, until they are freed."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Not wrapped for torch.compile, which would import hundreds of modules and set environment variables."""
        return False

    def __init__(self) -> None:
        super().__init__()
        self.now: int = 0
        self.most: int = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What torch calls instead of each of its operations."""
        for given in tree_leaves((args, kwargs)):
            if isinstance(given, Tensor):
                # Made before: a weight.
                self._seen.add(given.untyped_storage())
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                self._seen.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.most = max(self.most, self.now)
        return made

    def _freed(self, size: int) -> None:
        self.now -= size
