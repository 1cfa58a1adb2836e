"""The model file: one .safetensors with the weights, and a JSON document about the model in its header.

Loading reads numbers and text only: nothing is unpickled and no code from the file runs. The card is read and checked
without torch; the names that need torch are resolved on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from volseg.modelfile.card import (
    BUNDLED,
    HEADER_KEY,
    READABLE,
    SCHEMA_VERSION,
    ModelCard,
    bundled_models,
    check_cards,
    check_model_path,
    find_model,
    read_card,
    sha256_of_model,
)

if TYPE_CHECKING:
    from volseg.modelfile.weights import load_model, save_model, save_tensors

__all__ = [
    "BUNDLED",
    "HEADER_KEY",
    "READABLE",
    "SCHEMA_VERSION",
    "ModelCard",
    "bundled_models",
    "check_cards",
    "check_model_path",
    "find_model",
    "load_model",
    "read_card",
    "save_model",
    "save_tensors",
    "sha256_of_model",
]


def __getattr__(name: str) -> Any:
    """Import what needs torch on its first use (PEP 562)."""
    if name in ("load_model", "save_model", "save_tensors"):
        return getattr(import_module("volseg.modelfile.weights"), name)
    raise AttributeError(f"module 'volseg.modelfile' has no attribute {name!r}")
