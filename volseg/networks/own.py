"""A network of the caller's own: a factory makes it from the plan, and it is checked once before it is used."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from volseg.config import Plan, Triple
from volseg.device import ran_out_of_memory, random_numbers_kept
from volseg.errors import UsageError
from volseg.precision import autocast
from volseg.text import printable, shortened

# Makes a network from the plan of a run or of a model. Of the plan it needs `plan.network.in_channels`,
# `plan.network.classes` (background included; for regions one each), and at times `plan.patch_size` (D, H, W).
#
# The module maps (B, in_channels, D, H, W) float32 to logits (B, classes, D, H, W); in training it may return a list of
# logits instead, finest first, the others of any size: deep supervision. B and, with progressive patch size, D, H and W
# differ from call to call.
NetworkFactory: TypeAlias = Callable[[Plan], nn.Module]
# Characters of a reason in a message.
LONGEST = 300


def require_factory(network: Any) -> None:
    """Reject what is no function that makes a network.

    Raises:
        UsageError: it is a network, or something else.
    """
    if isinstance(network, nn.Module) or not callable(network):
        raise UsageError(
            f"network is {_kind(network)}; give a function that makes it: network=lambda plan: ... . It is called with "
            "the plan, which has plan.network.in_channels, plan.network.classes and plan.patch_size."
        )


def build_own(factory: NetworkFactory, plan: Plan) -> nn.Module:
    """The network that a factory makes for a plan.

    Raises:
        UsageError: it is no module, or has no weights.
    """
    network = factory(plan)
    if not isinstance(network, nn.Module):
        raise UsageError(
            f"The factory of the network returned {_kind(network)}, expected a torch.nn.Module. It is called with the "
            "plan, and returns the network."
        )
    if not any(True for _ in network.parameters()):
        raise UsageError(f"The network {type(network).__name__} has no parameters, so there is nothing to train.")
    if _is_lazy(network):
        run_once(network.eval(), plan, plan.patch_size)
    return network


def check_own(network: nn.Module, plan: Plan, sizes: Sequence[Triple], batch: int, dtype: torch.dtype) -> None:
    """Check that a network maps patches to logits, before it is trained. It and the random numbers stay as they are.

    Args:
        network: on its device.
        plan: of the run.
        sizes: the patch sizes (D, H, W) of the run, the largest last.
        batch: patches in a batch.
        dtype: of the feature maps.

    Raises:
        UsageError: it cannot take a patch, returns something else, or has no weights to train.
    """
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UsageError(
            f"No parameter of the network {type(network).__name__} has requires_grad, so none would learn."
        )
    if others := [name for name, value in network.state_dict().items() if not isinstance(value, Tensor)]:
        raise UsageError(
            f"The state_dict of the network {type(network).__name__} has values that are no tensors ({others[0]}), and "
            "a model file holds tensors alone. Leave out get_extra_state."
        )
    network.eval()
    for size in reversed(sizes):
        output = run_once(network, plan, size, dtype=dtype)
        if not isinstance(output, Tensor):
            raise _refused(network, plan, size, f"returned {_kind(output)} in evaluation mode")
        _check_logits(output, network, plan, size)
    # In training, where it may return a list. Statistics such as those of batch norm are of the copy.
    copied = copy.deepcopy(network).train()
    for size in dict.fromkeys((sizes[-1], sizes[0])):
        output = run_once(copied, plan, size, batch, dtype)
        every = [output] if isinstance(output, Tensor) else output
        if not isinstance(every, list | tuple) or not every or not all(isinstance(one, Tensor) for one in every):
            raise _refused(network, plan, size, f"returned {_kind(output)} in training")
        _check_logits(every[0], network, plan, size)
        for one in every[1:]:
            if one.ndim != 5 or one.shape[1] != plan.network.classes:
                raise _refused(network, plan, size, f"returned coarser logits {tuple(one.shape)}")


def run_once(network: nn.Module, plan: Plan, size: Triple, batch: int = 1, dtype: torch.dtype = torch.float32) -> Any:
    """What a network returns for patches (batch, in_channels, D, H, W) of zeros, in the mode that it is in.

    Raises:
        UsageError: it cannot take them.
    """
    device = next(network.parameters()).device
    try:
        with torch.no_grad(), random_numbers_kept(device), autocast(device, dtype):
            return network(torch.zeros(batch, plan.network.in_channels, *size, device=device))
    # What modules raise for a shape that they cannot take.
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        if ran_out_of_memory(error):
            raise
        reason = shortened(printable(" ".join(str(error).split())).rstrip("."), LONGEST)
        raise _refused(network, plan, size, f"raised {type(error).__name__} ({reason})") from error


def check_window(network: nn.Module, plan: Plan, dtype: torch.dtype) -> None:
    """Check that a network in evaluation mode maps a window of its plan to logits.

    Raises:
        UsageError: it cannot take the window, or returns something else.
    """
    output = run_once(network, plan, plan.patch_size, dtype=dtype)
    if not isinstance(output, Tensor):
        raise _refused(network, plan, plan.patch_size, f"returned {_kind(output)} in evaluation mode")
    _check_logits(output, network, plan, plan.patch_size)


def _check_logits(output: Tensor, network: nn.Module, plan: Plan, size: Triple) -> None:
    found = tuple(output.shape[1:])
    if output.ndim != 5 or found != (plan.network.classes, *size):
        raise _refused(network, plan, size, f"returned {tuple(output.shape)}")


def _refused(network: nn.Module, plan: Plan, size: Triple, found: str) -> UsageError:
    channels, classes = plan.network.in_channels, plan.network.classes
    shapes = [f"(B, {', '.join(map(str, (one, *size)))})" for one in (channels, classes)]
    advice = (
        "Return that"
        if tuple(size) == tuple(plan.patch_size)
        else "Patches of this size come while they grow: give training.progressive_patch_size=0 for full ones alone"
    )
    return UsageError(
        f"The network {type(network).__name__} {found} for a patch {shapes[0]}, expected logits {shapes[1]}, in "
        f"training also a list of logits, finest first. {advice}, or give a plan.patch_size that suits the network."
    )


def _is_lazy(network: nn.Module) -> bool:
    """Whether a network has parameters without a shape, which it takes from its first input."""
    return any(isinstance(one, UninitializedParameter) for one in network.parameters())


def _kind(found: Any) -> str:
    return "None" if found is None else f"a {type(found).__name__}"
