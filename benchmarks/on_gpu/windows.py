"""Windows a second of nnU-Net's network: eager, compiled, and as a CUDA graph.

To compare with: NVIDIA reports 27.4 images of 128 x 128 x 128 voxels a second on an A100 at batch 4 for its own nnU-Net
(DeepLearningExamples, PyTorch/Segmentation/nnUNet).
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from on_gpu.common import Line, Setting, ct_plan, median_ms
from volseg.networks import UNet
from volseg.precision import autocast, choose_precision

BATCHES = (1, 2, 4, 8)
Run = Callable[[Tensor], Tensor]


def measure(setting: Setting) -> Iterator[Line]:
    """Windows a second for each way and batch."""
    plan = ct_plan(setting, 14)
    dtype = choose_precision("auto", setting.device)
    network = UNet(plan.network).eval().requires_grad_(False).to(setting.device)

    def eager(window: Tensor) -> Tensor:
        with torch.no_grad(), autocast(setting.device, dtype):
            found: Tensor = network(window)
            return found

    # Way by way, because compiling takes longer than all the others together.
    for name, way in WAYS.items():
        for batch in setting.sized(BATCHES, (1, 2)):
            window = torch.randn(batch, 1, *plan.patch_size, device=setting.device)
            line: Line = {"way": name, "batch": batch, "precision": str(dtype).removeprefix("torch.")}
            try:
                run = way(eager, window, setting)
                ms = median_ms(setting, lambda run=run, window=window: run(window), setting.sized(10, 1))
                line |= {"ms": ms, "windows/s": round(1000 * batch / ms, 2), "peak GiB": setting.peak_gib()}
            except Exception as error:  # one way that fails must not end the others
                line["error"] = f"{type(error).__name__}: {str(error)[:300]}"
            yield line


def compiled(eager: Run, _: Tensor, setting: Setting) -> Run:
    """By torch.compile; not on the CPU, whose kernels it cannot trace."""
    if setting.device.type != "cuda":
        raise RuntimeError("needs CUDA")
    return torch.compile(eager, dynamic=False)


def graphed(eager: Run, window: Tensor, setting: Setting) -> Run:
    """As one CUDA graph."""
    if setting.device.type != "cuda":
        raise RuntimeError("needs CUDA")
    side = torch.cuda.Stream()
    # The window and the weights come from the stream that was current so far.
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        eager(window)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = eager(window)

    def run(_: Tensor) -> Tensor:
        graph.replay()
        return output

    return run


WAYS: dict[str, Callable[[Run, Tensor, Setting], Run]] = {
    "eager": lambda eager, *_: eager,
    "CUDA graph": graphed,
    "compiled": compiled,
}
