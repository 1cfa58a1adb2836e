"""The weights of a model file: writing and loading them."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from volseg.errors import InputError
from volseg.files import utf8_path, whole_file
from volseg.modelfile.card import HEADER_KEY, ModelCard, read_card
from volseg.text import shortened


def save_model(path: Path, card: ModelCard, weights: dict[str, torch.Tensor]) -> None:
    """Write a model file whole or not at all; weights keep their type."""
    save_tensors(path, weights, {HEADER_KEY: card.model_dump_json()})


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], header: dict[str, str]) -> None:
    """Write tensors and a header as one .safetensors file, whole or not at all.

    Raises:
        ResourceError: the file cannot be written.
    """
    stored: dict[str, torch.Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        # The library refuses tensors that share memory, such as tied weights.
        stored[name] = whole.clone() if whole.untyped_storage().data_ptr() in places else whole
        places.add(whole.untyped_storage().data_ptr())
    with whole_file(path) as temporary:
        # Only the owner may read the files that save_file writes.
        temporary.write_bytes(save(stored, metadata=header))


def load_model(path: Path) -> tuple[ModelCard, dict[str, torch.Tensor]]:
    """A model's card and its weights by name, on the CPU, as views of the file where possible.

    Raises:
        InputError: see `read_card`.
    """
    return read_card(path), load_weights(path)


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file by name, on the CPU, as views of the file where possible.

    Raises:
        InputError: the system cannot map the file.
    """
    try:
        with utf8_path(path) as readable:
            weights: dict[str, torch.Tensor] = load_file(readable, device="cpu")
            return weights
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = shortened(" ".join(str(error).split()), 200)
        raise InputError(f"The weights in {path} cannot be read: {reason}. Give a readable model file.") from error
