"""Time nnU-Net v2's training step on the CPU, on one random batch.

    python benchmarks/nnunet/step.py SPECIFICATION

Needs a Python that has nnunetv2; `train_step.py` calls this with that Python and a `Step` as JSON, and reads the
seconds of each step. Threads, network, loss, optimiser, float32 and gradient clipping are nnU-Net's on a CPU.
"""

import json
import multiprocessing
import sys
import time

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss


def main() -> None:
    work = json.loads(sys.argv[1])
    torch.set_num_threads(multiprocessing.cpu_count())
    torch.manual_seed(0)
    network = network_of(work)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.99, nesterov=True, weight_decay=3e-5)
    loss = loss_of(len(work["features"]) - 1)
    image = torch.randn(work["batch"], 1, *work["patch"])
    # One target per resolution, like those of nnU-Net's data loader.
    sizes = [[size >> level for size in work["patch"]] for level in range(len(work["features"]) - 1)]
    targets = [torch.randint(work["classes"], (work["batch"], 1, *size), dtype=torch.int16) for size in sizes]
    seconds = []
    for _ in range(work["repeats"] + 1):
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        error = loss(network(image), targets)
        error.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        error.detach().cpu().numpy()
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"seconds": seconds[1:]}))


def network_of(work: dict) -> torch.nn.Module:
    """PlainConvUNet as nnU-Net's planner configures it, in training mode."""
    stages = len(work["features"])
    network = PlainConvUNet(
        1,
        n_stages=stages,
        features_per_stage=work["features"],
        conv_op=torch.nn.Conv3d,
        kernel_sizes=[[3, 3, 3]] * stages,
        strides=[[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        n_conv_per_stage=[2] * stages,
        num_classes=work["classes"],
        n_conv_per_stage_decoder=[2] * (stages - 1),
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )
    network.apply(network.initialize)
    return network.train()


def loss_of(resolutions: int) -> torch.nn.Module:
    """Dice and cross-entropy at all resolutions but the coarsest, the finest first."""
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DC_and_CE_loss(dice, {}, weight_ce=1, weight_dice=1, dice_class=MemoryEfficientSoftDiceLoss)
    weights = [0.5**level for level in range(resolutions - 1)]
    return DeepSupervisionWrapper(loss, [*(weight / sum(weights) for weight in weights), 0.0])


if __name__ == "__main__":
    main()
