"""Documents of a run that lie beside its model file, read for the members of an ensemble."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from volseg.config import Frozen, checked
from volseg.documents import read_json, read_or
from volseg.errors import InputError

Document = TypeVar("Document", bound=Frozen)


def documents_beside(models: Sequence[Path], name: str, kind: type[Document]) -> list[Document] | None:
    """The documents of this name in the folders of model files; None if one of them is missing.

    Raises:
        InputError: one of them cannot be read.
    """
    files = [model.with_name(name) for model in models]
    if not all(file.exists() for file in files):
        return None
    advice = "Finish the run again: volseg train --resume --finish."
    read = partial(read_json, times=4)
    return [
        checked(kind, read_or(InputError, read, file, "readable JSON", advice), str(file), InputError) for file in files
    ]
