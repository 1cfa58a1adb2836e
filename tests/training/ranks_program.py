"""What each of several processes does in test_ranks.py: fits a small network and writes down how it ended."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests.pipeline import tiny_plan
from volseg.config import TrainingConfig
from volseg.modelfile import save_tensors
from volseg.networks import UNet
from volseg.training.loop import fit
from volseg.training.ranks import Ranks, joined
from volseg.training.schedule import Budget
from volseg.training.state import TrainingState

CONFIG = TrainingConfig(learning_rate=0.01, validations=0, ema_decay=0.9, precision="fp32")
NETWORK = tiny_plan().network.model_copy(
    update={
        "features": (4, 8, 8),
        "encoder_blocks": (1, 1, 1),
        "decoder_blocks": (1, 1),
        "kernels": ((3, 3, 3),) * 3,
        "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    }
)


def batches(ranks: Ranks) -> Iterator[dict[str, torch.Tensor]]:
    """A rank's share of batches of three: it is uneven, and class 2 lies in one sample only, so on one rank only."""
    generator = torch.Generator().manual_seed(0)
    while True:
        image = torch.randn(3, 1, 8, 8, 8, generator=generator)
        label = (image[:, 0] > 0.5).to(torch.uint8)
        label[1, :4] *= 2
        yield {"image": ranks.share(image), "label": ranks.share(label)}


def trained(ranks: Ranks, budget: Budget, **options: Any) -> tuple[TrainingState, list[dict[str, Any]]]:
    """A state after `budget`, and the records of its steps."""
    torch.manual_seed(0)
    state, records = TrainingState(UNet(NETWORK), CONFIG, ranks), []
    fit(state, batches(ranks), budget, CONFIG, report=records.append, **options)
    return state, records


def tensors(state: TrainingState) -> dict[str, torch.Tensor]:
    """Weights and averages, and the gradients of the last step where there are any."""
    found = {f"weight {name}": value for name, value in state.network.state_dict().items()}
    found |= {f"average {name}": value for name, value in state.ema.state_dict().items()}
    parameters = state.network.named_parameters()
    return found | {f"gradient {name}": value.grad for name, value in parameters if value.grad is not None}


def main(folder: Path) -> None:
    """Train by steps, by the clock, and until one rank is asked to stop."""
    with joined(torch.device("cpu")) as ranks:
        for steps in (1, 6):
            state, records = trained(ranks, Budget(steps=steps))
            save_tensors(folder / f"{steps}steps.{ranks.rank}.safetensors", tensors(state), {})
        timed, timed_records = trained(ranks, Budget(seconds=0.5))
        asked = iter(range(1, 1000))
        stopped, _ = trained(ranks, Budget(steps=1000), stopped=lambda: next(asked) == 4 and not ranks.first)
        told = {
            "losses": [record["loss"] for record in records],
            "rates of the timed run": [record["learning_rate"] for record in timed_records],
            "timed": timed.step,
            "stopped": stopped.step,
            "gathered": ranks.gather({f"case {index}": index for index in ranks.share(range(5))}),
            "made": ranks.on_first_rank(lambda: f"by {ranks.rank}"),
        }
        (folder / f"{ranks.rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
