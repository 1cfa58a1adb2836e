"""The model file: one .safetensors with the weights, and a JSON document about the model in its header.

Loading reads numbers and text only: nothing is unpickled and no code from the file runs.
"""

import json
import os
from pathlib import Path
from typing import Any, Self

import safetensors
import torch
from pydantic import Field, model_validator
from safetensors.torch import load_file, save

from volseg.config import ComponentRule, Frozen, Plan, checked
from volseg.errors import InputError, UsageError
from volseg.files import access_to, require_writable, sha256_of, utf8_path, whole_file
from volseg.version import __version__

HEADER_KEY = "volseg"
# 3: networks have an architecture, "unet" in files of version 2.
SCHEMA_VERSION = 3
READABLE = (2, 3)
BUNDLED = Path(__file__).parent / "models"


class ModelCard(Frozen):
    """The document in the header of a model file; together with the weights, all that prediction needs."""

    schema_version: int = SCHEMA_VERSION
    name: str
    plan: Plan
    members: int = Field(1, ge=1, description="networks whose logits are averaged, such as the folds")
    training: dict[str, Any] = Field(default_factory=dict, description="data, licence, cases, steps, seconds, seed")
    postprocessing: dict[str, ComponentRule] = Field(
        default_factory=dict, description="by label name; chosen on the validation cases, none for regions"
    )
    scores: dict[str, Any] = Field(default_factory=dict, description="on the validation cases, after postprocessing")
    volseg_version: str = __version__

    @model_validator(mode="after")
    def _rules_have_labels(self) -> Self:
        unknown = self.postprocessing.keys() - {label.name for label in self.plan.labels}
        if unknown:
            raise ValueError(
                f"postprocessing has rules for {', '.join(sorted(unknown))}, but the plan has no such label"
            )
        if self.plan.regions and self.postprocessing:
            raise ValueError("regions overlap, so postprocessing rules are not supported for them")
        return self


def bundled_models() -> dict[str, Path]:
    """The bundled models, by name."""
    return {path.stem: path for path in sorted(BUNDLED.glob("*.safetensors"))}


def find_model(model: str | Path) -> Path:
    """The path of a bundled model by name, or `model` itself as a path.

    Raises:
        InputError: `model` is neither a bundled name nor a file.
    """
    bundled = bundled_models()
    if str(model) in bundled:
        return bundled[str(model)]
    if not os.path.isfile(model):
        names = ", ".join(bundled) or "none in this version"
        raise InputError(
            f"There is no model {str(model)!r}. Give the path of a model file or a bundled name ({names})."
        )
    return Path(model)


def check_model_path(path: Path, overwrite: bool) -> None:
    """Check that a model file can be written to `path`.

    Raises:
        UsageError: the file exists and `overwrite` is False, its name does not end in .safetensors, or the operating
            system does not allow it.
    """
    if path.suffix != ".safetensors":
        raise UsageError(f"{path} does not end in .safetensors. Choose a name that does.")
    require_writable([path])
    if path.exists() and not overwrite:
        raise UsageError(f"{path} already exists. Choose another name or add --overwrite.")


def save_model(path: Path, card: ModelCard, weights: dict[str, torch.Tensor]) -> None:
    """Write a model file whole or not at all; weights keep their type."""
    save_tensors(path, weights, {HEADER_KEY: card.model_dump_json()})


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], header: dict[str, str]) -> None:
    """Write tensors and a header as one .safetensors file, whole or not at all.

    Raises:
        ResourceError: the file cannot be written.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole_file(path) as temporary:
        # Only the owner may read the files that save_file writes.
        temporary.write_bytes(save(stored, metadata=header))


def read_card(path: Path) -> ModelCard:
    """The document in a model file's header, without its weights.

    Raises:
        InputError: not a model file of volseg, or one written by a newer version.
    """
    try:
        with safetensors.safe_open(path, framework="np") as handle:
            header = (handle.metadata() or {}).get(HEADER_KEY)
    except FileNotFoundError as error:
        raise InputError(
            f"There is no model file {path}. Give the path of a .safetensors file that volseg wrote."
        ) from error
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is not a model file: {error}. Give a .safetensors file that volseg wrote.") from error
    if header is None:
        raise InputError(f"{path} holds weights but no '{HEADER_KEY}' document: it is not a model that volseg wrote.")
    try:
        document = json.loads(header)
        found = document["schema_version"]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"The '{HEADER_KEY}' document in {path} is corrupt. Copy or download the model again."
        ) from error
    if found not in READABLE:
        raise InputError(
            f"{path} has schema version {found}, but this volseg reads {' and '.join(map(str, READABLE))}. "
            "Use the volseg that wrote it, or a newer one."
        )
    return checked(ModelCard, document, f"The document in {path}", InputError)


def load_model(path: Path) -> tuple[ModelCard, dict[str, torch.Tensor]]:
    """A model's card and its weights by name, on the CPU.

    Raises:
        InputError: see `read_card`.
    """
    card = read_card(path)
    with utf8_path(path) as readable, access_to(path):
        return card, load_file(readable, device="cpu")


def sha256_of_model(path: Path) -> str:
    """The SHA-256 of a model file, as 64 hexadecimal digits.

    Raises:
        InputError: it cannot be read.
    """
    with access_to(path):
        return sha256_of(path)
