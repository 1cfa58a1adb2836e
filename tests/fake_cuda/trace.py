"""What torch is asked for on a GPU, operation by operation, without one.

    python trace.py GUARD OUTPUT

Tensors are fake ones (torch's FakeTensorMode) on cuda:0: they have shapes, types and strides, and no values. GUARD is
the compiled guard.cpp, with which torch decides as it does where there is cuDNN. OUTPUT is a JSON file: for each case
its operations in order, and the types of what it returned.
"""

import ctypes
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)

import torch  # noqa: E402 - torch looks for the guard when it is imported
from torch import nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from volseg.confidence.sums import SumsObserver  # noqa: E402
from volseg.config import Channel, Label, NetworkConfig, Plan  # noqa: E402
from volseg.inference.labelling import predictor_of  # noqa: E402
from volseg.inference.stream import Head, Ring, averaged_over_flips  # noqa: E402
from volseg.inference.windows import Windows  # noqa: E402
from volseg.networks import Classifier, Ensemble, UNet  # noqa: E402
from volseg.networks.blocks import initialise  # noqa: E402
from volseg.precision import autocast  # noqa: E402
from volseg.training import SegmentationLoss, TrainingState, classification_loss  # noqa: E402
from volseg.training.optimisers import Muon  # noqa: E402

GPU = torch.device("cuda:0")
MODE = FakeTensorMode(allow_non_fake_inputs=True)
FORMATS = (torch.contiguous_format, torch.channels_last_3d)
# Three stages and an uneven patch, so that no two sizes are equal by chance.
SHAPE = (2, 1, 16, 24, 32)
STAGES: dict[str, Any] = {
    "features": (8, 16, 32), "encoder_blocks": (2, 2, 2), "decoder_blocks": (2, 2),
    "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3)), "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2)), "classes": 3,
}  # fmt: skip
NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "residual": {"encoder": "residual"},
    "2+1": {"block": "conv2plus1d"},
    "2-D": {"kernels": ((1, 3, 3),) * 3, "strides": ((1, 1, 1), (1, 2, 2), (1, 2, 2))},
    "batch": {"norm": "batch"},
    "group": {"norm": "group"},
    "none": {"norm": "none"},
    "two channels": {"in_channels": 2},
}
TRAINED = ("plain", "residual", "2+1", "2-D")
NOTHING = ("empty", "empty_like", "new_empty", "new_empty_strided", "_unsafe_view", "prim::device")
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Recorder(TorchDispatchMode):
    """The operations that torch starts on the GPU: not those that only look at memory in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[dict[str, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func.name().removeprefix("aten::")
        views = any(one.alias_info and not one.alias_info.is_write for one in func._schema.returns)
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        results = [one for one in tree_leaves(made) if isinstance(one, torch.Tensor)]
        on_gpu = any(one.device.type == "cuda" for one in (*tensors, *results))
        if on_gpu and not views and name.partition(".")[0] not in NOTHING:
            self.operations.append({"name": name, "in": described(tensors), "out": described(results)})
        return made


def described(tensors: list[torch.Tensor]) -> list[dict[str, Any]]:
    """Of each its shape and type, and whether it is in each of the two formats."""
    return [
        {
            "shape": list(one.shape),
            "dtype": str(one.dtype).removeprefix("torch."),
            "formats": [one.ndim == 5 and one.is_contiguous(memory_format=form) for form in FORMATS],
        }
        for one in tensors
    ]


def fake(tensor: torch.Tensor) -> FakeTensor:
    """A tensor of the meta device as a fake one on the GPU."""
    return FakeTensor(MODE, tensor, GPU)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> FakeTensor:
    return fake(torch.empty(shape, dtype=dtype, device="meta"))


def on_gpu(network: nn.Module) -> nn.Module:
    """A network of the meta device with fake weights."""
    for module in network.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(fake(value.data), requires_grad=value.requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = fake(value)
    return network


def unet(options: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return on_gpu(UNet(NetworkConfig(**{**STAGES, **options})))


def predicted(network: nn.Module, channels: int, dtype: torch.dtype, mirror: tuple[int, ...] = ()) -> list[Any]:
    """What a window gives, as the engine calls the network."""
    forward = predictor_of(network.eval().requires_grad_(False), GPU, dtype).forward
    if mirror:
        forward = averaged_over_flips(forward, Windows(SHAPE[2:], batch_size=4, mirror_axes=mirror))
    # Not inference mode, in which torch shows a convolution before it has decided how to compute it.
    with torch.no_grad():
        return [forward(empty(SHAPE[0], channels, *SHAPE[2:]))]


def trained(network: nn.Module, channels: int, dtype: torch.dtype) -> list[Any]:
    """Logits and loss of one forward and backward pass."""
    network.train()
    with autocast(GPU, dtype):
        outputs = network(empty(SHAPE[0], channels, *SHAPE[2:]))
    loss = SegmentationLoss()(outputs, empty(SHAPE[0], *SHAPE[2:], dtype=torch.uint8))
    loss.backward()
    return [*outputs, loss]


def classified() -> list[Any]:
    with torch.device("meta"):
        network = on_gpu(Classifier(NetworkConfig(**STAGES)))
    with autocast(GPU, torch.bfloat16):
        logits = network(empty(*SHAPE))
    loss = classification_loss(logits, empty(SHAPE[0], dtype=torch.int64))
    loss.backward()
    return [loss]


class Kernels(nn.Module):
    """Twelve kernels of two shapes."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv3d(8, 8 << (one % 2), 3, bias=False) for one in range(count))
        initialise(self)


def stepped(count: int) -> list[Any]:
    """A step of the optimiser, of kernels alone: AdamW reads its count of steps, which is a value."""
    with torch.device("meta"):
        network = on_gpu(Kernels(count))
    for one in network.parameters():
        one.grad = torch.empty_like(one)
    Muon(network, 0.1, 0.01).step()
    return list(network.parameters())


def ring() -> list[Any]:
    """Logits of features that were blended."""
    head = Head(empty(40, 8), empty(40))
    return [Ring(empty(4, 6, 6, 8), head, 1 << 24)._logits(empty(2, 6, 6, 8))]


def observed(regions: bool) -> list[Any]:
    """What a calibrated model gathers of two slabs of logits."""
    labels = tuple(Label(name=f"label {value}", value=value, parts=(value,) * regions) for value in (1, 2))
    network = NetworkConfig(**{**STAGES, "classes": 2 + (not regions)})
    plan = Plan(
        dataset="fake", channels=(Channel(),), labels=labels, spacing_mm=(1, 1, 1), patch_size=SHAPE[2:],
        network=network, regions=regions,
    )  # fmt: skip
    observer = SumsObserver(plan, (1.0, 1.5))
    for first in (0, 4):
        observer(first, empty(network.classes, 4, 6, 6))
    return observer.waiting


def averaged() -> list[Any]:
    state = TrainingState.__new__(TrainingState)
    state.network, state.ema = unet({}), unet({}).requires_grad_(False)
    state.step = 3
    state.update_ema(0.1)
    return []


def cases() -> dict[str, Any]:
    every: dict[str, Any] = {}
    for name, options in NETWORKS.items():
        channels = options.get("in_channels", 1)
        for precision, dtype in TYPES.items():
            if precision == "bf16" or name == "plain":
                every[f"predict {name} {precision}"] = lambda o=options, c=channels, d=dtype: predicted(unet(o), c, d)
            if name in TRAINED and (precision == "bf16" or name == "plain"):
                every[f"train {name} {precision}"] = lambda o=options, c=channels, d=dtype: trained(
                    unet({**o, "deep_supervision": True}), c, d
                )
    every["ring"] = ring
    every["predict mirror"] = lambda: predicted(unet({}), 1, torch.bfloat16, (0, 2))
    every["predict members"] = lambda: predicted(Ensemble([unet({}), unet({})]), 1, torch.bfloat16)
    every["classify"] = classified
    every["muon 2"], every["muon 12"] = (lambda: stepped(2)), (lambda: stepped(12))
    every["average"] = averaged
    every["observe"], every["observe regions"] = (lambda: observed(False)), (lambda: observed(True))
    return every


def main(output: Path) -> None:
    """Run every case, and write what was recorded."""
    # torch's Python asks this build, which has no CUDA, before it looks at the type of a tensor.
    torch.cuda.is_available = lambda: True
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True
    found = {}
    for name, run in cases().items():
        with ExitStack() as stack:
            stack.enter_context(MODE)
            recorder = stack.enter_context(Recorder())
            try:
                returned = run()
            except Exception as error:
                raise RuntimeError(f"the case {name!r} failed") from error
        found[name] = {"operations": recorder.operations, "returned": described(returned)}
    output.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[2]))
