"""Model files that say what they should not."""

import json
import struct
from pathlib import Path
from typing import Any

from tests.pipeline import tiny_plan, write_model
from volseg.config import Channel, ComponentRule, Label
from volseg.modelfile import ModelCard, load_model, save_model


def whole_model(path: Path) -> Path:
    """A small model whose card has every field, with a CT channel and two scores."""
    ct = Channel(name="CT", normalisation="ct", clip=(-100.0, 300.0), mean=40.0, std=80.0, mean_range=(-900.0, 900.0))
    labels = (
        Label(name="ball", value=1, colour=(255, 0, 0), volume_ml_range=(0.5, 2.0)),
        Label(name="rod", value=2, volume_ml_range=(0.1, 20.0)),
    )
    write_model(path, tiny_plan(channels=(ct,), labels=labels))
    card, weights = load_model(path)
    mean = {"dice": 0.5, "cases": 3}
    whole = ModelCard(
        name="tiny",
        plan=card.plan,
        training={"dataset": "tiny", "cases": 3, "licence": "CC0"},
        postprocessing={"rod": ComponentRule(smallest_ml=0.1, largest_only=True, dice_before=0.5, dice_after=0.6)},
        scores={"foreground_dice": 0.5, "labels": {"ball": mean, "rod": mean}},
    )
    save_model(path, whole, {name: tensor.clone() for name, tensor in weights.items()})
    return path


def card_in(path: Path) -> Any:
    """The card of a model file, as a document."""
    return json.loads(_parts(path)[0]["__metadata__"]["volseg"])


def with_card(path: Path, card: str, target: Path) -> Path:
    """A copy of a model file with another text in the place of its card."""
    header, numbers = _parts(path)
    header["__metadata__"]["volseg"] = card
    return with_header(json.dumps(header).encode(), target, numbers)


def with_tensors(path: Path, change: Any, target: Path) -> Path:
    """A copy of a model file with other entries for its tensors: `change` alters those of the header in place."""
    header, numbers = _parts(path)
    change(header)
    return with_header(json.dumps(header).encode(), target, numbers)


def with_header(header: bytes, target: Path, numbers: bytes = b"", length: int | None = None) -> Path:
    """A file with this header, of the length that it states."""
    target.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + numbers)
    return target


def _parts(path: Path) -> tuple[Any, bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    return json.loads(content[8 : 8 + length]), content[8 + length :]
