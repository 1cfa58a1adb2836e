"""The program that each process of test_ranks.py runs: it trains a small network and writes its results to files."""

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
from volseg.training.budget import Budget
from volseg.training.loop import fit
from volseg.training.ranks import Ranks, join_process_group
from volseg.training.state import TrainingState

CONFIG = TrainingConfig(learning_rate=0.01, validations=0, ema_fraction=0.1, precision="fp32")
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
    """A rank's shard of batches of three samples, of which only the second has class 2, so only one rank has it."""
    generator = torch.Generator().manual_seed(0)
    while True:
        image = torch.randn(3, 1, 8, 8, 8, generator=generator)
        label = (image[:, 0] > 0.5).to(torch.uint8)
        label[1, :4] *= 2
        yield {"image": ranks.shard(image), "label": ranks.shard(label)}


def trained(ranks: Ranks, budget: Budget, **options: Any) -> tuple[TrainingState, list[dict[str, Any]]]:
    """The state after training for `budget`, and the records of its steps."""
    torch.manual_seed(0)
    state, records = TrainingState(UNet(NETWORK), CONFIG, ranks), []
    fit(state, batches(ranks), budget, CONFIG, report=records.append, **options)
    return state, records


def tensors(state: TrainingState) -> dict[str, torch.Tensor]:
    """Weights, EMA of the weights, and the gradients of the last step."""
    found = {f"weight {name}": value for name, value in state.network.state_dict().items()}
    found |= {f"ema {name}": value for name, value in state.ema.state_dict().items()}
    parameters = state.network.named_parameters()
    return found | {f"gradient {name}": value.grad for name, value in parameters if value.grad is not None}


def main(folder: Path) -> None:
    """Train for a number of steps, for a time, and until one rank requests a stop."""
    with join_process_group(torch.device("cpu")) as ranks:
        for steps in (1, 6):
            state, records = trained(ranks, Budget(steps=steps))
            save_tensors(folder / f"{steps}steps.{ranks.rank}.safetensors", tensors(state), {})
        timed, timed_records = trained(ranks, Budget(seconds=0.5))
        calls = iter(range(1, 1000))
        stopped, _ = trained(ranks, Budget(steps=1000), stopped=lambda: next(calls) == 4 and not ranks.first)
        results = {
            "losses": [record["loss"] for record in records],
            "rates of the timed run": [record["learning_rate"] for record in timed_records],
            "timed": timed.step,
            "stopped": stopped.step,
            "gathered": ranks.gather({f"case {index}": index for index in ranks.shard(range(5))}),
            "from first rank": ranks.on_first_rank(lambda: f"by {ranks.rank}"),
        }
        (folder / f"{ranks.rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
