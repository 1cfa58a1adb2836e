"""A training step in parts, the loader with more and more workers, growing patches, and a whole run."""

import json
import statistics
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch

from on_gpu.common import Line, Setting, nnunet_network, write_cases
from volseg import train
from volseg.config import TrainingConfig
from volseg.data.cases.phantom import write_phantoms
from volseg.device import expandable_memory
from volseg.networks import UNet
from volseg.precision import autocast, choose_precision
from volseg.training import TrainingState
from volseg.training.losses import supervised_loss

BATCH = 2
WORKERS = (4, 8, 14)
TINY = ("plan.blocks_per_stage=1", "plan.features=[4, 8]", "plan.patch_size=[16, 16, 16]", "plan.batch_size=2")


class Parts:
    """The parts of a training step, on random patches."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.config = TrainingConfig()
        self.dtype = choose_precision("auto", setting.device)
        self.state = TrainingState(UNet(nnunet_network(setting, 3)).to(setting.device), self.config)
        self.state.network.train()

    def step(self, edge: int) -> dict[str, float]:
        """Milliseconds of each part of one step, each until the device has finished."""
        setting, state = self.setting, self.state
        image = torch.randn(BATCH, 1, edge, edge, edge, device=setting.device)
        target = torch.randint(3, (BATCH, edge, edge, edge), dtype=torch.uint8, device=setting.device)
        marks = [("", self._now())]
        with autocast(setting.device, self.dtype):
            outputs = state.network(image)
        loss = supervised_loss(outputs, target, state.ranks)
        marks.append(("forward and loss", self._now()))
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        marks.append(("backward", self._now()))
        torch.nn.utils.clip_grad_norm_(state.network.parameters(), self.config.gradient_clip)
        marks.append(("clip", self._now()))
        state.optimizer.step()
        marks.append(("optimiser", self._now()))
        state.step += 1
        state.update_ema(self.config.ema_fraction, self.config.ema_decay)
        marks.append(("EMA", self._now()))
        return {name: 1000 * (after - before) for (_, before), (name, after) in pairwise(marks)}

    def _now(self) -> float:
        self.setting.wait()
        return time.perf_counter()


def step(setting: Setting) -> Iterator[Line]:
    """The parts of a step at the full patch size, with and without cudnn.benchmark."""
    edge = setting.sized(128, 16)
    for tuned in (False, True):
        torch.backends.cudnn.benchmark = tuned
        parts = Parts(setting)
        found = [parts.step(edge) for _ in range(setting.sized(13, 3))][setting.sized(3, 1) :]
        medians = {f"{name}, ms": round(statistics.median(one[name] for one in found), 3) for name in found[0]}
        total = round(sum(medians.values()), 3)
        yield {"patch": edge, "cudnn.benchmark": tuned, **medians, "step, ms": total, "peak GiB": setting.peak_gib()}
        # Or the next peak has two networks.
        del parts


def growth(setting: Setting) -> Iterator[Line]:
    """Steps a second and reserved memory while patches grow, with memory that grows with them as in a run."""
    parts = Parts(setting)
    with expandable_memory(setting.device, needed=True):
        for edge in setting.sized(range(40, 136, 8), (16, 24)):
            found = [sum(parts.step(edge).values()) for _ in range(setting.sized(8, 2))]
            reserved = torch.cuda.memory_reserved(setting.device) / 2**30 if setting.device.type == "cuda" else None
            yield {
                "patch": edge,
                "first step, ms": round(found[0], 2),
                "step, ms": round(statistics.median(found[1:]), 2),
                "reserved GiB": reserved and round(reserved, 3),
            }


def loader(setting: Setting) -> Iterator[Line]:
    """Runs with more and more workers: how long each step waits for its batch."""
    cases = write_cases(setting.folder / "balls", 6, setting.sized(224, 24))
    plan = ("plan.patch_size=[128, 128, 128]", f"plan.batch_size={BATCH}")
    for workers in setting.sized(WORKERS, (0,)):
        overrides = [*setting.sized(plan, TINY), f"training.workers={workers}", "training.validations=0"]
        run = train(
            cases, setting.folder / f"run-{workers}", fold="all", steps=setting.sized(60, 2),
            overrides=[*overrides, "training.progressive_patch_size=0"], device=str(setting.device),
        )  # fmt: skip
        last = metrics(run)[-1]
        yield {
            "workers": workers,
            "steps/s": round(last["steps_per_second"], 3),
            "waiting share": round(last["waiting_share"], 4),
            "peak GiB": setting.peak_gib(),
        }


def run(setting: Setting) -> Iterator[Line]:
    """A minute of training on the dataset, and its validation."""
    dataset = setting.dataset
    if dataset is None:
        dataset = setting.folder / "phantoms"
        write_phantoms(dataset, count=setting.sized(40, 5), seed=1, kind="mr")
    budget = setting.sized({"minutes": 1.0}, {"steps": 2})
    overrides = setting.sized((), TINY)
    folder = train(dataset, setting.folder / "whole", fold=0, overrides=overrides, device=str(setting.device), **budget)
    last = metrics(folder)[-1]
    scores = json.loads((folder / "validation.json").read_text(encoding="utf-8"))
    yield {
        "dataset": dataset.name,
        "steps": last["step"],
        "seconds": last["seconds"],
        "waiting share": round(last["waiting_share"], 4),
        "foreground Dice": scores["mean"]["foreground_dice"],
        "cases": len(scores["cases"]),
        "peak GiB": setting.peak_gib(),
    }


def metrics(run: Path) -> list[Line]:
    """The records of a run's steps."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
