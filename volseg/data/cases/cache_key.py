"""What is kept of a case from run to run: the key that it is kept under, and where."""

import glob
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from volseg.data.cases.dataset import TrainingCase
from volseg.data.io.formats import image_suffix, stem_of
from volseg.errors import InputError
from volseg.files import sha256_of

# Characters of a case's name that begin the name of a file; file systems take 255 bytes at most.
NAME_LENGTH = 60


def shared_cache() -> Path | None:
    """The folder that runs share their cache in, which the variable VOLSEG_CACHE names; None without it."""
    named = os.environ.get("VOLSEG_CACHE")
    return Path(named).expanduser().absolute() if named else None


def cache_stem(folder: Path, case: TrainingCase, key: str) -> Path:
    """The path that the files of a case begin with: its name, and its `content_key`."""
    return folder / f"{case.name[:NAME_LENGTH]}.{key}"


def content_key(case: TrainingCase, facts: dict[str, Any]) -> str:
    """16 hexadecimal digits that stand for the input files' bytes and for what is done with them.

    Raises:
        InputError: a file cannot be read.
    """
    try:
        files = [sha256_of(file) for path in (*case.images, case.label) for file in _files_of(path)]
    except OSError as error:
        reason = f"could not read {error.filename}: {error.strerror}"
        raise InputError(f"Case {case.name}: {reason}. Put the file back.") from error
    return hashlib.sha256(json.dumps({"files": files, **facts}, sort_keys=True).encode()).hexdigest()[:16]


def _files_of(path: Path) -> list[Path]:
    """The files an image consists of: a detached header has its voxels beside it, under the same stem."""
    if image_suffix(path) in (".nhdr", ".mhd"):
        return sorted(filter(Path.is_file, path.parent.glob(f"{glob.escape(stem_of(path))}.*")))
    return [path]
