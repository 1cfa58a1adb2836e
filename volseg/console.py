"""What a person sees of the command line: progress, log lines, tables, and errors as one sentence.

Everything here goes to standard error but what `show_json`, `show_table` and `show_line` print, which are the answer
of a command.
"""

import functools
import io
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, ParamSpec

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from volseg.errors import INTERRUPTED, SHOWN, DataSetError, OtherProcessError, ResourceError, VolsegError
from volseg.progress import Progress

LINE_SECONDS = 15.0
# Tables that go to a file or a pipe are not folded at the 80 columns rich assumes there.
PLAIN_WIDTH = 140
# What an installation by deploy/predict.txt leaves out: only training and drawing import these.
LEFT_OUT = frozenset({"blosc2", "matplotlib", "monai", "tensorboard"})

# Where a stream was closed before the start, Python has none, and what would go there is nowhere to be read.
for name in ("stdout", "stderr"):
    if getattr(sys, name) is None:
        setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - open as long as the process
    # A name that the stream's encoding lacks is printed by its number.
    if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")

errors = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else PLAIN_WIDTH)
answers = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
logger = logging.getLogger("volseg")
Arguments = ParamSpec("Arguments")


def guarded(verb: Callable[Arguments, int | None]) -> Callable[Arguments, None]:
    """Run a verb with log lines on, and turn errors raised on purpose into one sentence and an exit code."""

    @functools.wraps(verb)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        _start_logging()
        signal.signal(signal.SIGTERM, _as_interrupt)
        try:
            code = verb(*args, **kwargs)
        except (VolsegError, KeyboardInterrupt, ModuleNotFoundError) as error:
            # What is said now is said whole: torchrun sends SIGTERM where another process has ended.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            code = _say(_explained(error), bool(kwargs.get("as_json")))
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise typer.Exit(code or 0)

    return run


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A `Progress`: a bar with an ETA per stage on a terminal, plain log lines elsewhere."""
    if not errors.is_terminal:
        yield _lines()
        return
    columns = (
        TextColumn("{task.description:>11}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Bars(*columns, console=errors) as bars:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: float, text: str) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=1.0, text=text)
            bars.update(tasks[stage], completed=done, text=text)

        yield show


def show_error(error: object) -> None:
    """Print an error as one sentence on standard error, and the problems of a data set as a table below it."""
    if not isinstance(error, DataSetError):
        errors.print(f"[red]Error:[/red] {_escaped(error)}", soft_wrap=True)
        return
    errors.print(f"[red]Error:[/red] {_escaped(error.heading)}", soft_wrap=True)
    errors.print(_table(None, ("case", "problem", "found", "what to do"), error.problems[:SHOWN]))
    if len(error.problems) > SHOWN:
        errors.print(f"and {len(error.problems) - SHOWN} more")


def _error_document(error: VolsegError) -> dict[str, Any]:
    """An error as the document of a command that failed."""
    if not isinstance(error, DataSetError):
        return {"error": str(error)}
    return {"error": error.heading, "problems": [row._asdict() for row in error.problems]}


def show_json(document: Any) -> None:
    """Print one machine-readable document on standard output."""
    show_line(json.dumps(document, indent=2, allow_nan=False))


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table on standard output; numbers to the right."""
    with _printing():
        answers.print(_table(title, columns, rows))


def _table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=any(columns))
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float | None) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    return table


def show_line(text: str) -> None:
    """Print one line of an answer on standard output, as it is."""
    with _printing():
        sys.stdout.write(text + "\n")


@contextmanager
def _printing() -> Iterator[None]:
    """Print all of an answer now, and say it in a sentence where that cannot be done; a reader who left says nothing.

    Raises:
        ResourceError: the disk that standard output goes to is full, or the like.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # What is left in the buffer would be tried again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ResourceError(f"The answer could not be printed: {error.strerror}. What was to be written is.") from error


def _explained(error: VolsegError | KeyboardInterrupt | ModuleNotFoundError) -> VolsegError | KeyboardInterrupt:
    """The error, or what to install where a package is missing that predicting does without; else it is raised."""
    if not isinstance(error, ModuleNotFoundError):
        return error
    package = (error.name or "").partition(".")[0]
    if package not in LEFT_OUT:
        raise error
    explained = VolsegError(
        f"The package {package} is not installed, and this command needs it: the installation is for predicting only. "
        "Install the rest with: pip install volseg"
    )
    explained.__cause__ = error
    return explained


def _say(error: VolsegError | KeyboardInterrupt, as_json: bool) -> int:
    """Print why a verb ended early, in one sentence, and as a JSON document if asked for; the exit code."""
    if isinstance(error, KeyboardInterrupt):
        said = str(error) or "Stopped. Nothing half-written was left behind."
        errors.print(_escaped(said), soft_wrap=True)
        if as_json:
            show_json({"error": said})
        return INTERRUPTED
    if not isinstance(error, OtherProcessError):
        logger.debug("Where this error came from:", exc_info=error)
        show_error(error)
        if as_json:
            show_json(_error_document(error))
    return error.exit_code


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else _escaped(value)


def _escaped(value: object) -> str:
    return str(value).replace("[", r"\[")


def _lines() -> Progress:
    """Log lines: at the start and the end of a stage, and every quarter of a minute between."""
    last: dict[str, float] = {}

    def show(stage: str, done: float, text: str) -> None:
        now = time.monotonic()
        if stage not in last or done >= 1 or now - last[stage] >= LINE_SECONDS:
            last[stage] = now
            logger.info("%s %3.0f%% %s", stage, 100 * done, text)

    return show


def _start_logging() -> None:
    """Log lines to standard error: coloured on a terminal, plain elsewhere."""
    if errors.is_terminal:
        handler: logging.Handler = RichHandler(console=errors, show_path=False, show_level=False)
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    logger.handlers = [handler]
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


def _as_interrupt(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of signal handlers
    raise KeyboardInterrupt
