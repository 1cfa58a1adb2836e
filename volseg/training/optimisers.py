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
            decayed = [one for one in group["params"] if one.grad is not None and one.ndim >= 2]
            if decayed:
                torch._foreach_mul_(decayed, 1 - group["lr"] * self.weight_decay)
            kernels = [one for one in decayed if _is_kernel(one)]
            for together in _computed_together(kernels):
                self._step_kernels(together, group["lr"])
            for kernel in kernels:
                # AdamW skips parameters without a gradient.
                kernel.grad = None
        return super().step(closure)

    def _step_kernels(self, kernels: list[Tensor], rate: float) -> None:
        """One step of kernels of one shape, in as many operations as for one of them."""
        gradients = [kernel.grad for kernel in kernels if kernel.grad is not None]
        momenta: list[Tensor] = []
        for kernel in kernels:
            state = self.state[kernel]
            if not state:
                # AdamW expects a "step" in the state of each parameter when it loads a state.
                state |= {"step": torch.tensor(0.0), "momentum": torch.zeros_like(kernel)}
            state["step"] += 1
            momenta.append(state["momentum"])
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        # Nesterov momentum.
        ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)
        # Kernels are stored channels last, so that the view as a matrix copies nothing.
        shape = kernels[0].movedim(1, -1).shape
        matrices = [one.movedim(1, -1).flatten(1).float() for one in ahead]
        found = orthogonalise(torch.stack(matrices)) if len(kernels) > 1 else orthogonalise(matrices[0])[None]
        updates = [one.view(shape).movedim(-1, 1) for one in found]
        torch._foreach_add_(kernels, updates, alpha=-rate * UPDATE_RMS * max(matrices[0].shape) ** 0.5)


def _computed_together(kernels: list[Tensor]) -> list[list[Tensor]]:
    """Kernels in groups: on a GPU those of one shape, because starting an operation takes longer than a small one.

    On a CPU each by itself, which takes the least memory.
    """
    groups: dict[Any, list[Tensor]] = {}
    for number, kernel in enumerate(kernels):
        key = number if kernel.device.type == "cpu" else (kernel.shape, kernel.dtype, kernel.device)
        groups.setdefault(key, []).append(kernel)
    return list(groups.values())


def orthogonalise(matrix: Tensor) -> Tensor:
    """Set the singular values of a matrix to about 1 (0.7 to 1.2) by Newton-Schulz iteration, keeping its vectors.

    One iteration is X <- P X with S = X X' and P = a + b S + c S S. P commutes with S, so only the smaller matrix S is
    iterated, as S <- P S P, and the product of all P is applied to X once at the end. That is up to four times as fast.

    Args:
        matrix: (M, N) or (B, M, N) float32. Singular values below about 1/1000 of the largest may stay below 0.7; 0
            stays 0.

    Returns:
        (M, N) or (B, M, N) float32.
    """
    a, b, c = QUINTIC
    tall = matrix.shape[-2] > matrix.shape[-1]
    wide = matrix.mT if tall else matrix
    wide = wide / torch.linalg.vector_norm(wide, dim=(-2, -1), keepdim=True).clamp(min=1e-12)
    square = wide @ wide.mT
    add_product = torch.addmm if matrix.ndim == 2 else torch.baddbmm
    product = None
    for iteration in range(ITERATIONS):
        factor = add_product(square, square, square, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        if iteration < ITERATIONS - 1:
            square = factor @ square @ factor
    result: Tensor = product @ wide
    return result.mT if tall else result


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
