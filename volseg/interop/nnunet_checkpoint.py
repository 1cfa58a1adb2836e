"""Safe reading of nnU-Net v2 checkpoints: they are pickles, but no code that a file names is executed.

A checkpoint as nnU-Net leaves it contains NumPy scalars (losses, scores) next to tensors and plain Python values. The
stand-ins below build these scalars and nothing else; any other function or class in a file is rejected by name.
"""

import itertools
import pickle
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from volseg.errors import InputError

# Bytes of the pickle in a checkpoint, without the tensors' numbers. That of the largest residual encoder, with 1000
# epochs of losses, has about 1 MiB.
LARGEST_PICKLE = 4 * 2**20


class NumberType:
    """Replaces `numpy.dtype` while a pickle is read; accepts only number types.

    Args:
        code: such as "f8"; NumPy's other arguments do not matter for numbers.
    """

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or code[:1] not in "biuf" or not code[1:].isdecimal():
            raise pickle.UnpicklingError(f"NumPy type {code!r} is not a number type")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        """Set the byte order, the only relevant part of a number type's state."""
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


def number(kind: NumberType, raw: bytes) -> bool | int | float:
    """Replaces NumPy's function that makes a scalar from its bytes; returns a Python number."""
    value: bool | int | float = np.frombuffer(raw, kind.dtype, count=1)[0].item()
    return value


# NumPy 2 renamed the module; torch accepts replacements under any name.
STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (NumberType, "numpy.dtype"),
    (number, "numpy.core.multiarray.scalar"),
    (number, "numpy._core.multiarray.scalar"),
]


@dataclass(frozen=True)
class Checkpoint:
    """The parts of a checkpoint that prediction needs.

    Attributes:
        weights: tensors by nnU-Net's names, on the CPU.
        configuration: its name in plans.json, such as "3d_fullres".
        trainer: class name of nnU-Net's trainer.
        mirror_axes: network axes that nnU-Net flips in test-time augmentation.
    """

    weights: Mapping[str, Tensor]
    configuration: str
    trainer: str
    mirror_axes: tuple[int, ...]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        InputError: not readable, corrupt, or it contains more than tensors, numbers, text and containers of them.
    """
    document = _load(path)
    try:
        weights, configuration = document["network_weights"], document["init_args"]["configuration"]
        trainer, mirror_axes = document["trainer_name"], document.get("inference_allowed_mirroring_axes")
        # A tuple may hold itself a billion times, so nothing but text becomes text.
        if not (isinstance(configuration, str) and isinstance(trainer, str)):
            raise TypeError
        axes = tuple(_axis(one) for one in itertools.islice(mirror_axes or (), 4))
        checkpoint = Checkpoint(dict(weights), configuration, trainer, axes)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} is not a checkpoint of nnU-Net v2: network_weights, init_args or trainer_name is missing or of "
            "another type. Give a model folder trained by nnU-Net v2."
        ) from error
    if not all(isinstance(name, str) and isinstance(one, Tensor) for name, one in checkpoint.weights.items()):
        raise InputError(
            f"network_weights in {path} contains more than named tensors. Copy the file again from its source."
        )
    _check_storages(path, checkpoint.weights.values())
    return checkpoint


def _check_storages(path: Path, tensors: Iterable[Tensor]) -> None:
    """Reject a checkpoint with fewer numbers than its tensors need; torch maps what follows them in the file instead.

    Raises:
        InputError: see above.
    """
    with zipfile.ZipFile(path) as archive:
        there = Counter(one.file_size for one in archive.infolist() if "/data/" in one.filename)
    plain = (one.untyped_storage() for one in tensors if one.layout == torch.strided and one.device.type == "cpu")
    needed = Counter({one.data_ptr(): one.nbytes() for one in plain if one.nbytes()}.values())
    if short := needed - there:
        size = next(iter(short))
        raise InputError(
            f"{path} has tensors of {size} bytes without as many numbers. Copy the file again from its source."
        )


def _axis(value: Any) -> int:
    """A network axis: one of 0, 1 and 2."""
    if value not in (0, 1, 2):
        raise ValueError(value)
    return int(value)


def _check_size(path: Path) -> None:
    """Reject a file whose pickle is larger than that of any network: reading it would take minutes.

    Raises:
        InputError: see above. What is no .zip at all is left to torch.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [one for one in archive.infolist() if one.filename.endswith(".pkl")]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return
    if any(one.file_size > LARGEST_PICKLE for one in pickles):
        found = max(one.file_size for one in pickles) / 2**20
        raise InputError(
            f"{path} describes its content in {found:.1f} MiB, but a checkpoint of nnU-Net needs less than "
            f"{LARGEST_PICKLE / 2**20:g}. Take the file as nnU-Net wrote it."
        )


def _load(path: Path) -> Any:
    _check_size(path)
    try:
        with torch.serialization.safe_globals(STAND_INS):
            unknown = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
            if not unknown:
                # Memory-mapped, so that the optimiser's state, twice as large as the weights, is never read.
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except MemoryError:
        raise
    except Exception as error:
        # A corrupt pickle can raise any exception.
        _reject_corrupt(path, error)
    raise InputError(
        f"{path} needs {unknown[0]}, which volseg does not execute: a checkpoint may contain only tensors, numbers, "
        "text and containers of them. Save it again without other objects."
    )


def _reject_corrupt(path: Path, error: Exception) -> NoReturn:
    if isinstance(error, OSError):
        raise InputError(f"Could not read {path}: {error.strerror or error}.") from error
    # torch's message also explains how to switch off its safety checks; only the reason is passed on.
    message = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
    reason = next(iter(message.strip().splitlines()), "").split(". ")[0] or type(error).__name__
    raise InputError(
        f"{path} is not a PyTorch checkpoint, or it is corrupt ({reason}). Copy the file again from its source."
    ) from error
