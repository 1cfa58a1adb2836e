"""The key and the path of a case's files in a cache that is reused from run to run."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from volseg.data.cases.dataset import TrainingCase
from volseg.data.io.itk_files import files_of
from volseg.errors import InputError
from volseg.files import require_regular, sha256_of

# Characters of the case name in a file name; file systems allow 255 bytes at most.
NAME_LENGTH = 60


def shared_cache() -> Path | None:
    """The cache folder shared by all runs, from the environment variable VOLSEG_CACHE; None if it is not set."""
    folder = os.environ.get("VOLSEG_CACHE")
    return Path(folder).expanduser().absolute() if folder else None


def cache_stem(folder: Path, case: TrainingCase, key: str) -> Path:
    """The common beginning of the paths of a case's files: its name and its `content_key`."""
    return folder / f"{case.name[:NAME_LENGTH]}.{key}"


def content_key(case: TrainingCase, facts: dict[str, Any]) -> str:
    """16 hexadecimal digits that identify the input files' bytes and what is computed from them.

    Args:
        case: whose files are hashed.
        facts: the settings of the computation, as JSON values.

    Raises:
        InputError: a file cannot be read.
    """
    try:
        paths = (*case.images, case.label)
        for path in paths:
            require_regular(path)
        files = [sha256_of(file) for path in paths for file in files_of(path)]
    except OSError as error:
        reason = f"could not read {error.filename}: {error.strerror}"
        raise InputError(f"Case {case.name}: {reason}. Restore the file.") from error
    except InputError as error:
        raise InputError(f"Case {case.name}: {error}") from error
    return hashlib.sha256(json.dumps({"files": files, **facts}, sort_keys=True).encode()).hexdigest()[:16]
