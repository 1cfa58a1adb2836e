"""Terminal output: progress, log lines, tables, and errors as one sentence.

The result of a command goes to standard output, by `show_json`, `show_table` and `show_line`; all else goes to standard
error.
"""

import functools
import io
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, ParamSpec

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from volseg.errors import INTERRUPTED, SHOWN, DatasetError, OtherProcessError, ResourceError, VolsegError
from volseg.progress import Progress
from volseg.system import is_out_of_memory, missing_to_start
from volseg.text import OneLine, printable, printable_lines, shortened

LINE_SECONDS = 15.0
# The width of tables in a file or a pipe, where rich would assume 80 columns and wrap them.
PLAIN_WIDTH = 140
# Characters of a cell; --json has all of a longer text.
LONGEST_CELL = 10_000
MORE_MEMORY = "Free memory, raise the limit, or use a machine with more."
# Packages that deploy/predict.txt leaves out: only training and pictures need them.
NOT_FOR_PREDICTION = frozenset({"blosc2", "matplotlib", "monai", "tensorboard"})
# Packages of the extra `node`.
FOR_NODES = frozenset({"pynetdicom", "dicomweb_client", "requests"})

# The place of a standard stream that was closed before the start is taken: otherwise a result file gets its number, and
# messages of libraries end up in it.
while (taken := os.open(os.devnull, os.O_RDWR)) <= 2:
    os.set_inheritable(taken, True)
os.close(taken)
# A stream that was closed before the start is None in Python; its output goes to the null device.
for name in ("stdout", "stderr"):
    if getattr(sys, name) is None:
        setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - open as long as the process
    # Characters that the stream's encoding lacks are printed as their code.
    if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")

error_console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else PLAIN_WIDTH)
output_console = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
logger = logging.getLogger("volseg")
Arguments = ParamSpec("Arguments")


def guarded(command: Callable[Arguments, int | None]) -> Callable[Arguments, None]:
    """Run a command with logging on, and turn its `VolsegError`s and Ctrl-C into one sentence and an exit code."""

    @functools.wraps(command)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        _start_logging()
        signal.signal(signal.SIGTERM, _as_interrupt)
        try:
            _require_memory_to_start()
            code = command(*args, **kwargs)
        except (VolsegError, KeyboardInterrupt, ModuleNotFoundError) as error:
            # Print the whole message: torchrun sends SIGTERM when another process has ended.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            code = _report_error(_explained(error), bool(kwargs.get("as_json")))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            # What the traceback holds is freed first.
            traceback.clear_frames(error.__traceback__)
            code = _report_error(ResourceError(f"Out of memory. {MORE_MEMORY}"), bool(kwargs.get("as_json")))
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise typer.Exit(code or 0)

    return run


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A `Progress`: a bar with an ETA per stage on a terminal, plain log lines elsewhere."""
    if not error_console.is_terminal:
        yield _log_progress()
        return
    columns = (
        TextColumn("{task.description:>11}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", markup=False),
    )
    with Bars(*columns, console=error_console) as bars:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: float, text: str) -> None:
            shown = printable(text)
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=1.0, text=shown)
            bars.update(tasks[stage], completed=done, text=shown)

        yield show


def show_error(error: object) -> None:
    """Print an error as one sentence on standard error, and the problems of a dataset as a table below it."""
    if not isinstance(error, DatasetError):
        error_console.print(Text.assemble(("Error:", "red"), " ", printable_lines(error)), soft_wrap=True)
        return
    error_console.print(Text.assemble(("Error:", "red"), " ", printable(error.heading)), soft_wrap=True)
    error_console.print(_table(None, ("case", "problem", "found", "what to do"), error.problems[:SHOWN]))
    if len(error.problems) > SHOWN:
        error_console.print(f"and {len(error.problems) - SHOWN} more")


def _error_document(error: VolsegError) -> dict[str, Any]:
    """The JSON document of a failed command."""
    if not isinstance(error, DatasetError):
        return {"error": str(error)}
    return {"error": error.heading, "problems": [row._asdict() for row in error.problems]}


def show_json(document: Any) -> None:
    """Print one machine-readable document on standard output."""
    show_line(json.dumps(document, indent=2, allow_nan=False))


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table on standard output, numbers right-aligned."""
    with _standard_output():
        output_console.print(_table(title, columns, rows))


def _table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    table = Table(
        title=None if title is None else Text(printable(title)),
        title_justify="left",
        title_style="bold",
        show_header=any(columns),
    )
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float | None) for row in rows)
        table.add_column(
            Text("\n".join(map(printable, column.split("\n")))), justify="right" if numeric else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    return table


def show_line(text: str) -> None:
    """Print a command's result on standard output, without formatting; what it quotes is `printable`."""
    with _standard_output():
        sys.stdout.write(text + "\n")


@contextmanager
def _standard_output() -> Iterator[None]:
    """Flush what was printed, and turn a failed write into one sentence.

    Raises:
        ResourceError: standard output cannot be written, for example because its disk is full.
        BrokenPipeError: the reader of the pipe has gone; typer ends the program quietly.
    """
    # Python drops what a pipe cannot take at once, where another program has set it not to block.
    with suppress(OSError, ValueError, AttributeError):
        os.set_blocking(sys.stdout.fileno(), True)
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # Python would try to write the rest of the buffer again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ResourceError(
            f"Could not write to standard output ({error.strerror}); the result files are complete."
        ) from error


def _explained(error: VolsegError | KeyboardInterrupt | ModuleNotFoundError) -> VolsegError | KeyboardInterrupt:
    """The error; for a missing package that prediction does not need, what to install. Others are raised."""
    if not isinstance(error, ModuleNotFoundError):
        return error
    package = (error.name or "").partition(".")[0]
    if package in FOR_NODES:
        why, command = "it comes with the extra node", "pip install 'volseg[node]'"
    elif package in NOT_FOR_PREDICTION:
        why, command = "this installation is for prediction only", "pip install volseg"
    else:
        raise error
    explained = VolsegError(
        f"The package {package} is not installed, but this command needs it: {why}. Install the rest with: {command}"
    )
    explained.__cause__ = error
    return explained


def _require_memory_to_start() -> None:
    """Reject a limit under which not even the libraries can be loaded."""
    missing = missing_to_start()
    if missing:
        raise ResourceError(f"{missing}. {MORE_MEMORY}")


def _report_error(error: VolsegError | KeyboardInterrupt, as_json: bool) -> int:
    """Print why a command ended early, in one sentence and with `as_json` as a document; return the exit code."""
    if isinstance(error, KeyboardInterrupt):
        message = str(error) or "Interrupted. No unfinished files were left behind."
        error_console.print(Text(printable(message)), soft_wrap=True)
        if as_json:
            show_json({"error": message})
        return INTERRUPTED
    if not isinstance(error, OtherProcessError):
        logger.debug("Traceback of the error:", exc_info=error)
        show_error(error)
        if as_json:
            show_json(_error_document(error))
    return error.exit_code


def _cell(value: Any) -> Text:
    """A value in a table; as text, which rich does not search for markup."""
    if value is None:
        return Text("-")
    return Text(f"{value:.4g}" if isinstance(value, float) else printable(shortened(str(value), LONGEST_CELL)))


def _log_progress() -> Progress:
    """Log lines: at the start and the end of a stage, and every `LINE_SECONDS` in between and after."""
    last: dict[str, float] = {}
    ended: set[str] = set()

    def show(stage: str, done: float, text: str) -> None:
        now = time.monotonic()
        ends = done >= 1 and stage not in ended
        if stage not in last or ends or now - last[stage] >= LINE_SECONDS:
            last[stage] = now
            if ends:
                ended.add(stage)
            logger.info("%s %3.0f%% %s", stage, 100 * done, text)

    return show


def _start_logging() -> None:
    """Log lines to standard error: coloured on a terminal, plain elsewhere."""
    if error_console.is_terminal:
        handler: logging.Handler = RichHandler(console=error_console, show_path=False, show_level=False)
        handler.setFormatter(OneLine("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    logger.handlers = [handler]
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


def _as_interrupt(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of signal handlers
    raise KeyboardInterrupt
