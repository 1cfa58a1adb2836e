"""Muon: gradient descent in which every kernel takes a step of the same size along all its directions.

Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks (kellerjordan.github.io/posts/muon). The
momentum of a kernel, read as a matrix, is replaced by the nearest one whose singular values are all 1, so that rare
directions are learned as fast as common ones. On Task04_Hippocampus five minutes of it are worth more than twenty of
AdamW (benchmarks/EXPERIMENTS.md).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# Of the quintic a x + b x^3 + c x^5 that pulls singular values towards 1 (Jordan et al. 2024).
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95
# The root mean square of an update, about AdamW's (Liu et al. 2025, Muon is Scalable for LLM Training, 2502.16982).
UPDATE_RMS = 0.2


class Muon(torch.optim.AdamW):
    """Muon for the kernels of convolutions that see neighbours, AdamW for everything else: norms, biases, heads.

    Args:
        network: whose parameters are trained.
        learning_rate: of both kinds.
        weight_decay: per step and unit of learning rate, of both kinds.
    """

    def __init__(self, network: nn.Module, learning_rate: float, weight_decay: float) -> None:
        super().__init__(network.parameters(), lr=learning_rate, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step along the gradients; those of the kernels are used up."""
        for group in self.param_groups:
            for kernel in filter(_is_kernel, group["params"]):
                if kernel.grad is not None:
                    self._step_kernel(kernel, group["lr"], group["weight_decay"])
                    # AdamW passes over what has no gradient.
                    kernel.grad = None
        return super().step(closure)

    def _step_kernel(self, kernel: Tensor, rate: float, decay: float) -> None:
        gradient, state = kernel.grad, self.state[kernel]
        assert gradient is not None
        if not state:
            # AdamW, when it takes up a state, wants a step in each.
            state |= {"step": torch.tensor(0.0), "momentum": torch.zeros_like(kernel)}
        state["step"] += 1
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        # Nesterov's: the gradient of where the momentum leads.
        ahead = gradient.lerp(momentum, MOMENTUM)
        # Channels last, as kernels are laid out, so that reading one as a matrix copies nothing.
        matrix = ahead.movedim(1, -1).flatten(1).float()
        update = orthogonalised(matrix).view(ahead.movedim(1, -1).shape).movedim(-1, 1)
        kernel.mul_(1 - rate * decay).add_(update, alpha=-rate * UPDATE_RMS * max(matrix.shape) ** 0.5)


def orthogonalised(matrix: Tensor) -> Tensor:
    """A matrix of the same singular vectors whose singular values are about 1 (0.7 to 1.2) instead, by Newton-Schulz.

    A step of it is X <- P X with P = a + b S + c S S of S = X X', which commutes with S: so only S, the smaller one, is
    iterated, as S <- P S P, and all steps are taken at once in the end. That is up to four times as fast.

    Args:
        matrix: (M, N) float32. A singular value below about a thousandth of the largest may stay smaller; 0 stays 0.

    Returns:
        (M, N) float32.
    """
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if tall else matrix
    wide = wide / wide.norm().clamp(min=1e-12)
    square = wide @ wide.T
    steps = torch.eye(len(wide), device=wide.device)
    for _ in range(ITERATIONS):
        step = torch.addmm(square, square, square, beta=b, alpha=c)
        step.diagonal().add_(a)
        steps = step @ steps
        square = step @ square @ step
    found: Tensor = steps @ wide
    return found.T if tall else found


def _is_kernel(parameter: Tensor) -> bool:
    """Whether a parameter is a convolution's kernel of more than one voxel."""
    return parameter.ndim == 5 and parameter.shape[2:].numel() > 1
