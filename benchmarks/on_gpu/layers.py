"""Convolution, instance norm and activation in each memory layout, with each norm, with and without cudnn.benchmark."""

from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from on_gpu.common import Line, Setting, median_ms
from volseg.precision import autocast

SIZES = ((32, 128), (64, 64), (320, 8))
BATCH = 2
LAYOUTS = {"NCDHW": torch.contiguous_format, "NDHWC": torch.channels_last_3d}
Norm = Callable[[Tensor, Tensor, Tensor], Tensor]


def measure(setting: Setting) -> Iterator[Line]:
    """Milliseconds and TFLOP/s of each combination, forwards alone and with the backward pass."""
    for (channels, edge), (layout, memory), (name, norm), tuned in product(
        SIZES, LAYOUTS.items(), NORMS.items(), (False, True)
    ):
        edge = setting.sized(edge, 8)
        torch.backends.cudnn.benchmark = tuned
        x = torch.randn(BATCH, channels, edge, edge, edge, device=setting.device).to(memory_format=memory)
        kernel = torch.randn(channels, channels, 3, 3, 3, device=setting.device).to(memory_format=memory)
        scale, shift = torch.ones(2, channels, device=setting.device)
        kernel.requires_grad_()

        def forward(
            x: Tensor = x, kernel: Tensor = kernel, scale: Tensor = scale, shift: Tensor = shift, norm: Norm = norm
        ) -> Tensor:
            with autocast(setting.device, torch.bfloat16):
                return F.leaky_relu(norm(F.conv3d(x, kernel, padding=1), scale, shift), 0.01)

        with torch.no_grad():
            ms = median_ms(setting, forward, setting.sized(20, 1), setting.sized(5, 1))
        both = median_ms(setting, lambda: forward().sum().backward(), setting.sized(10, 1), setting.sized(3, 1))
        gflop = 2 * BATCH * edge**3 * channels**2 * 27 / 1e9
        yield {
            "channels": channels,
            "edge": edge,
            "layout": layout,
            "norm": name,
            "cudnn.benchmark": tuned,
            "forward, ms": ms,
            "TFLOP/s": round(gflop / ms, 2),
            "with backward, ms": both,
        }


def by_instance_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """PyTorch's instance norm."""
    return F.instance_norm(x, weight=scale, bias=shift)


def by_batch_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The same as batch norm of each sample by itself."""
    samples = [F.batch_norm(one, None, None, scale, shift, training=True) for one in x.split(1)]
    return torch.cat(samples)


NORMS: dict[str, Norm] = {"instance norm": by_instance_norm, "batch norm of each sample": by_batch_norm}
