"""Reading nnU-Net v2 checkpoints, which are pickles, without executing anything that a file asks for.

A checkpoint as nnU-Net leaves it holds NumPy scalars (losses, scores) beside tensors and plain Python values. They are
built by the stand-ins below, which know numbers and nothing else; whatever else a file names is refused by name.
"""

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from volseg.errors import InputError


class NumberType:
    """Stands in for `numpy.dtype` while a pickle is read: only plain numbers.

    Args:
        code: such as "f8"; what NumPy writes after it says nothing about numbers.
    """

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or code[:1] not in "biuf" or not code[1:].isdecimal():
            raise pickle.UnpicklingError(f"NumPy type {code!r} is no number")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        """Take the byte order, the only thing in a number's state."""
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


def number(kind: NumberType, raw: bytes) -> bool | int | float:
    """Stands in for NumPy's function that makes a scalar of its bytes; gives the Python number."""
    value: bool | int | float = np.frombuffer(raw, kind.dtype, count=1)[0].item()
    return value


# NumPy 2 renamed the module; torch takes stand-ins under any name.
STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (NumberType, "numpy.dtype"),
    (number, "numpy.core.multiarray.scalar"),
    (number, "numpy._core.multiarray.scalar"),
]


@dataclass(frozen=True)
class Checkpoint:
    """What predicting needs of a checkpoint.

    Attributes:
        weights: tensors by nnU-Net's names, on the CPU.
        configuration: of the plans, such as "3d_fullres".
        trainer: class name.
        mirror_axes: network axes along which nnU-Net mirrors when predicting.
    """

    weights: Mapping[str, Tensor]
    configuration: str
    trainer: str
    mirror_axes: tuple[int, ...]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        InputError: not readable, damaged, or it holds more than tensors, numbers, text and containers of them.
    """
    document = _load(path)
    try:
        weights, configuration = document["network_weights"], document["init_args"]["configuration"]
        trainer, mirror_axes = document["trainer_name"], document.get("inference_allowed_mirroring_axes")
        checkpoint = Checkpoint(dict(weights), str(configuration), str(trainer), tuple(map(int, mirror_axes or ())))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} is not a checkpoint of nnU-Net v2: network_weights, init_args or trainer_name is missing or of "
            "another kind. Give a model folder that nnU-Net v2 trained."
        ) from error
    if not all(isinstance(name, str) and isinstance(one, Tensor) for name, one in checkpoint.weights.items()):
        raise InputError(f"network_weights in {path} holds more than named tensors. Take a fresh copy of the file.")
    return checkpoint


def _load(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(STAND_INS):
            unknown = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
            if not unknown:
                # Mapped, so that the optimizer's state, twice as large as the weights, is never read.
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except MemoryError:
        raise
    except Exception as error:
        # A damaged pickle fails in as many ways as there are instructions in it.
        _refuse_damaged(path, error)
    raise InputError(
        f"{path} asks for {unknown[0]}, which volseg does not run: a checkpoint may hold tensors, numbers, text and "
        "containers of them. Save it again without what needs more."
    )


def _refuse_damaged(path: Path, error: Exception) -> NoReturn:
    if isinstance(error, OSError):
        raise InputError(f"Could not read {path}: {error.strerror or error}.") from error
    # Around the reason torch writes how to switch its safety off, which is no advice to pass on.
    told = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
    reason = next(iter(told.strip().splitlines()), "").split(". ")[0] or type(error).__name__
    raise InputError(
        f"{path} is not a checkpoint that torch wrote, or it is damaged ({reason}). Take a fresh copy of the file."
    ) from error
