"""Start the server of trials, and run trials in it."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).parent
CHECKOUT = HERE.parent.parent
# How the shim is armed; see the enumeration in shim.c.
MODES = {"count": 0, "fail": 1, "sticky": 2, "kill": 3, "torn": 4}


@dataclass(frozen=True)
class Fault:
    """What goes wrong: the `at`th counted call fails with `errno`, or the process is killed there or after `seconds`.

    Args:
        mode: count (nothing), fail, sticky (that call and all later ones that can give this error), kill, or torn (the
            call writes half of its bytes before the process is killed).
    """

    mode: str = "count"
    at: int = 0
    errno: int = 0
    seconds: float | None = None


NO_FAULT = Fault()


@dataclass(frozen=True)
class Call:
    """One counted call: its name ("open+" creates a file), and its path."""

    name: str
    path: str


@dataclass(frozen=True)
class Ended:
    """How a trial ended: the exit code, negative for a signal, None if it hung; its output; the counted calls."""

    code: int | None
    stdout: str
    stderr: str
    calls: tuple[Call, ...] = field(repr=False)
    seconds: float = 0.0


def build_shim(folder: Path) -> Path | None:
    """Compile the shim; None where there is no compiler, or no Linux."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    library = folder / "shim.so"
    subprocess.run(
        [compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library, HERE / "shim.c", "-ldl"],
        check=True,
    )
    return library


class Server:
    """A process with the heavy packages imported, which forks one process per trial; use it as a context.

    Args:
        shim: see `build_shim`.
        seconds: after which a trial hangs.
    """

    def __init__(self, shim: Path, seconds: float = 60.0) -> None:
        self._shim, self._seconds = shim, seconds

    def __enter__(self) -> "Server":
        self._folder = Path(tempfile.mkdtemp(prefix="faults-"))
        one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server", self._shim], cwd=CHECKOUT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, **one_thread, "LD_PRELOAD": str(self._shim), "PYTHONPATH": str(CHECKOUT)},
        )  # fmt: skip
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()
        shutil.rmtree(self._folder)

    def run(
        self,
        arguments: Sequence[str],
        folder: Path,
        fault: Fault = NO_FAULT,
        environment: Mapping[str, str] | None = None,
        patches: Mapping[str, Any] | None = None,
    ) -> Ended:
        """Run a command in `folder`, below which all calls count; its temporary folder is `folder`/tmp.

        Args:
            arguments: after "volseg".
            folder: the current one of the command.
            fault: what goes wrong.
            environment: more variables.
            patches: module attributes by their dotted names, to make a command short.
        """
        files = {name: str(self._folder / name) for name in ("stdout", "stderr", "log")}
        given = {
            "arguments": list(arguments), "folder": str(folder), "mode": MODES[fault.mode], "at": fault.at,
            "errno": fault.errno, "kill_after": fault.seconds, "timeout": self._seconds, "patches": dict(patches or {}),
            "environment": {"TMPDIR": str(folder / "tmp"), **(environment or {})}, **files,
        }  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(given) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        texts = {name: Path(path).read_text(encoding="utf-8", errors="replace") for name, path in files.items()}
        calls = sorted(
            (int(one[0]), Call(*one[1:])) for one in (line.split("\t") for line in texts["log"].splitlines())
        )
        return Ended(
            answer["code"], texts["stdout"], texts["stderr"], tuple(call for _, call in calls), answer["seconds"]
        )
