"""Where the dataset of a run lies, kept in RUN/sources.json, so that `volseg audit` finds its references again.

It is written whenever a run starts or resumes: the folder may have moved in between. The run itself never reads it.
"""

from collections.abc import Sequence
from pathlib import Path

from volseg.config import Frozen, checked
from volseg.documents import read_json, read_or
from volseg.errors import InputError
from volseg.files import write_json

FILE_NAME = "sources.json"


class _Sources(Frozen):
    """The content of the file."""

    folders: tuple[str, ...] | None


def write_sources(run: Path, folders: Sequence[str | Path] | None) -> None:
    """Write the folders of a run's dataset; None of a list of cases, which has none."""
    found = None if folders is None else [str(Path(folder).absolute()) for folder in folders]
    write_json(run / FILE_NAME, {"folders": found})


def sources_of(run: Path) -> list[Path] | None:
    """The folders of a run's dataset; None if the run does not know them, as those of a list of cases.

    Raises:
        InputError: the file was changed.
    """
    if not (run / FILE_NAME).exists():
        return None
    document = read_or(InputError, read_json, run / FILE_NAME, "readable JSON", "Remove it, and give --dataset.")
    found = checked(_Sources, document, str(run / FILE_NAME), InputError).folders
    return None if found is None else [Path(folder) for folder in found]
