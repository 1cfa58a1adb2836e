"""What reading an input came to, against what is right for it."""

import contextlib
import io
import os
import re
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

from tests.fuzzing.inputs import Input
from tests.reading.volume import difference
from volseg.data.io.reading import Scan, read_scan
from volseg.errors import InputError, UsageError

GOOD = ("volume", "volume with warning", "refused")
# What a sentence may only say of a file that is short or damaged.
DAMAGED = re.compile(r"corrupt|truncated|cut short|damaged|copy (it|them) again", re.IGNORECASE)
# What libraries say, and what is no plain sentence.
FOREIGN = re.compile(
    r"Traceback|/tmp/volseg|itk::|\.cxx|\.hxx|0x[0-9a-f]{6}|nan degrees|np\.\w+\(|Exception", re.IGNORECASE
)
LONGEST = 700


@dataclass(frozen=True)
class Outcome:
    """Args:
    kind: one of GOOD, or the kind of a finding.
    detail: what was read or said.
    """

    kind: str
    detail: str


def outcome_of(one: Input) -> Outcome:
    """Read an input, with everything that reaches the console or is warned of in Python."""
    with _console() as printed, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            scan = read_scan(one.path)
            outcome = _of_scan(one, scan)
        except (InputError, UsageError) as error:
            outcome = _of_refusal(one, str(error), error.exit_code)
        # Whatever else is raised is a finding, and so is a scan that cannot be compared.
        except Exception as error:
            outcome = Outcome("crash", f"{type(error).__name__}: {error}")
    said = [f"{one.category.__name__}: {one.message}" for one in caught] + printed
    if said and outcome.kind in GOOD:
        return Outcome("noise", " | ".join(said)[:LONGEST])
    return outcome


def _of_scan(one: Input, scan: Scan) -> Outcome:
    right, said = one.right, " ".join(scan.warnings)
    if not right.volumes:
        return Outcome("wrong volume", f"read, expected a refusal; warnings: {said or 'none'}")
    found = [difference(scan.channels[0], scan.geometry.affine, volume) for volume in right.volumes]
    if all(found):
        return Outcome("wrong volume", "; ".join(found) + f"; warnings: {said or 'none'}")
    if right.warn and not any(word.lower() in said.lower() for word in right.warn):
        return Outcome("silent", f"no warning with one of {', '.join(right.warn)}; warnings: {said or 'none'}")
    return Outcome("volume with warning" if said else "volume", said)


def _of_refusal(one: Input, sentence: str, exit_code: int) -> Outcome:
    plain = sentence.replace(str(one.path), "PATH").replace(str(one.path.parent), "FOLDER")
    if exit_code != 2:
        return Outcome("bad sentence", f"exit code {exit_code}: {plain}")
    if fault := _fault_of(one, plain):
        return Outcome("bad sentence", f"{fault}: {plain}")
    if not one.damaged and not one.right.short and DAMAGED.search(plain):
        return Outcome("untrue reason", plain)
    return Outcome("turned away" if one.right.whole else "refused", plain)


def _fault_of(one: Input, sentence: str) -> str:
    """What is wrong with a sentence, whatever it is about."""
    # A list of series may follow, one in a line.
    first, *more = sentence.split("\n")
    if not any(name in sentence for name in ("PATH", one.path.name, *_members(one))):
        return "names no file"
    listed = bool(more) and first.endswith(":") and all(line.startswith("  ") for line in more)
    if len(first) > LONGEST or not (listed or (first.endswith(".") and not more)):
        return "not one short sentence"
    if FOREIGN.search(sentence):
        return "a library's words"
    if re.search(r"\bnan\b", sentence, re.IGNORECASE) and not one.odd_numbers:
        return "nan, which the file does not have"
    return ""


def _members(one: Input) -> list[str]:
    """The names of the files of a folder or .zip."""
    if one.path.suffix == ".zip":
        try:
            with zipfile.ZipFile(one.path) as archive:
                return [PurePath(name).name for name in archive.namelist()]
        except zipfile.BadZipFile:
            return []
    return [file.name for file in one.path.iterdir()] if one.path.is_dir() else []


@contextlib.contextmanager
def _console() -> Iterator[list[str]]:
    """The lines that are written to standard output and standard error, also by C++."""
    lines: list[str] = []
    kept = [os.dup(number) for number in (1, 2)]
    written = io.StringIO()
    with tempfile.TemporaryFile() as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
                yield lines
        finally:
            for number, descriptor in zip((1, 2), kept, strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)
            file.seek(0)
            text = written.getvalue() + file.read().decode("utf-8", "replace")
            lines += sorted(set(text.splitlines()))
