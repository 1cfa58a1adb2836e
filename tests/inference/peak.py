"""Segment noise with an untrained network, and print what was planned and what was measured, in bytes, as JSON.

    python -m tests.inference.peak '{"features": [32, 64], "patch": [96, 96, 96]}'

A process of its own, because the peak is that of its whole life.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from volseg import Segmenter
from volseg.api import segmenter as api
from volseg.config import Channel, Label, NetworkConfig, Plan
from volseg.inference.budget import CHUNKS, ChunkSize, MemoryPlan, plan_chunks
from volseg.modelfile import ModelCard, save_model
from volseg.networks import UNet
from volseg.system import peak_memory_bytes, resident_bytes


def main() -> None:
    options: dict[str, Any] = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    plan = plan_of(options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.safetensors"
        torch.manual_seed(0)
        save_model(path, ModelCard(name="m", plan=plan), UNet(plan.network).state_dict())
        tta = "mirror" if options.get("mirror") else "none"
        segmenter = Segmenter.load(
            path, device="cpu", precision=options.get("precision", "fp32"), overlap=0.25, tta=tta
        )
    found: dict[str, Any] = {}

    def planned(need: Any, *rest: Any) -> tuple[MemoryPlan, int]:
        plan, most = plan_chunks(need, *rest)
        if options.get("released"):
            plan = MemoryPlan(ChunkSize(CHUNKS[-1], keep_freed=False), plan.windows, 0)
            most = max(need.parts(plan.chunk).values())
        found.update(used=resident_bytes(), planned=most, parts=need.parts(plan.chunk))
        return plan, most

    api.plan_chunks = planned
    shape = options.get("shape", [32, 32, 32])
    scan = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    segmenter((scan, np.eye(4)))
    sys.stdout.write(json.dumps({**found, "measured": peak_memory_bytes() - found["used"]}))


def plan_of(options: dict[str, Any]) -> Plan:
    """The plan of a network of few blocks, with `classes` outputs."""
    stages, classes, regions = len(options["features"]), options.get("classes", 3), options.get("regions", False)
    network = NetworkConfig(
        classes=classes,
        features=options["features"],
        encoder_blocks=options.get("encoder_blocks", (1,) * stages),
        decoder_blocks=options.get("decoder_blocks", (1,) * (stages - 1)),
        kernels=options.get("kernels", ((3, 3, 3),) * stages),
        strides=options.get("strides", ((1, 1, 1), *((2, 2, 2),) * (stages - 1))),
        encoder=options.get("encoder", "plain"),
        block=options.get("block", "conv3d"),
    )
    return Plan(
        dataset="m",
        channels=(Channel(name="MRI"),),
        labels=tuple(Label(name=f"l{value}", value=value) for value in range(1, classes + regions)),
        regions=regions,
        spacing_mm=(1.0, 1.0, 1.0),
        patch_size=options["patch"],
        mirror_axes=(0, 1, 2),
        network=network,
    )


if __name__ == "__main__":
    main()
