"""Muon: an optimiser that orthogonalises the update of each convolution kernel.

Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks (kellerjordan.github.io/posts/muon). The
momentum of a kernel, as a matrix, is replaced by the nearest matrix whose singular values are all 1, so that rare
directions are learned as fast as common ones. On Task04_Hippocampus, five minutes with Muon give a higher Dice than
twenty with AdamW (benchmarks/EXPERIMENTS.md).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# Coefficients of the quintic a x + b x^3 + c x^5 that moves singular values towards 1 (Jordan et al. 2024).
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95
# Root mean square of an update, about that of AdamW (Liu et al. 2025, Muon is Scalable for LLM Training, 2502.16982).
UPDATE_RMS = 0.2


class Muon(torch.optim.AdamW):
    """Muon for convolution kernels larger than one voxel, AdamW for all other parameters: norms, biases,
    and kernels of one voxel.

    Args:
        network: the network to train.
        learning_rate: of Muon and AdamW.
        weight_decay: of all kernels, decoupled: multiplied by the learning rate in each step. Norms and biases have
            none: it would pull the scale of normalised feature maps to 0, which limits no complexity.
    """

    def __init__(self, network: nn.Module, learning_rate: float, weight_decay: float) -> None:
        # AdamW's own decay would apply to all parameters of a group, and a checkpoint has one group.
        super().__init__(network.parameters(), lr=learning_rate, weight_decay=0.0)
        self.weight_decay = weight_decay

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One optimiser step; it sets the gradients of the kernels to None."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None or parameter.ndim < 2:
                    continue
                parameter.mul_(1 - group["lr"] * self.weight_decay)
                if _is_kernel(parameter):
                    self._step_kernel(parameter, group["lr"])
                    # AdamW skips parameters without a gradient.
                    parameter.grad = None
        return super().step(closure)

    def _step_kernel(self, kernel: Tensor, rate: float) -> None:
        gradient, state = kernel.grad, self.state[kernel]
        assert gradient is not None
        if not state:
            # AdamW expects a "step" in the state of each parameter when it loads a state.
            state |= {"step": torch.tensor(0.0), "momentum": torch.zeros_like(kernel)}
        state["step"] += 1
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        # Nesterov momentum.
        ahead = gradient.lerp(momentum, MOMENTUM)
        # Kernels are stored channels last, so that the view as a matrix copies nothing.
        matrix = ahead.movedim(1, -1).flatten(1).float()
        update = orthogonalise(matrix).view(ahead.movedim(1, -1).shape).movedim(-1, 1)
        kernel.add_(update, alpha=-rate * UPDATE_RMS * max(matrix.shape) ** 0.5)


def orthogonalise(matrix: Tensor) -> Tensor:
    """Set the singular values of a matrix to about 1 (0.7 to 1.2) by Newton-Schulz iteration, keeping its vectors.

    One iteration is X <- P X with S = X X' and P = a + b S + c S S. P commutes with S, so only the smaller matrix S is
    iterated, as S <- P S P, and the product of all P is applied to X once at the end. That is up to four times as fast.

    Args:
        matrix: (M, N) float32. Singular values below about 1/1000 of the largest may stay below 0.7; 0 stays 0.

    Returns:
        (M, N) float32.
    """
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if tall else matrix
    wide = wide / wide.norm().clamp(min=1e-12)
    square = wide @ wide.T
    product = torch.eye(len(wide), device=wide.device)
    for _ in range(ITERATIONS):
        factor = torch.addmm(square, square, square, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor @ product
        square = factor @ square @ factor
    result: Tensor = product @ wide
    return result.T if tall else result


def learning_rate(progress: float, peak: float, warmup: float) -> float:
    """Linear warm-up to `peak` over the fraction `warmup` of the run, then cosine decay to 0.

    Loshchilov and Hutter 2017, arXiv 1608.03983, without restarts.
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return peak * (progress + 1e-3) / (warmup + 1e-3)
    return peak * 0.5 * (1.0 + math.cos(math.pi * (progress - warmup) / (1.0 - warmup)))


def has_moments(parameter: Tensor, moments: dict[str, Tensor]) -> bool:
    """Whether `moments` are what `Muon` keeps of a parameter, by their names and shapes."""
    kept = ("momentum",) if _is_kernel(parameter) else ("exp_avg", "exp_avg_sq")
    shapes = {"step": torch.Size(()), **dict.fromkeys(kept, parameter.shape)}
    return {name: moment.shape for name, moment in moments.items()} == shapes


def _is_kernel(parameter: Tensor) -> bool:
    """Whether a parameter is a convolution kernel of more than one voxel."""
    return parameter.ndim == 5 and parameter.shape[2:].numel() > 1
