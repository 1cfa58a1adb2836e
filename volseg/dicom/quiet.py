"""Silence of pydicom and highdicom, whose warnings and log lines quote values of headers, such as a patient's name."""

import logging
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec

Arguments = ParamSpec("Arguments")

_silent = ContextVar("silent", default=False)


class _Silence(logging.Filter):
    """Passes no line of a thread that is in `in_silence`; others are free to use pydicom as they like."""

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002 - the signature of filters
        return not _silent.get()


_FILTER = _Silence()


def in_silence(function: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """A function during which pydicom and highdicom neither log nor warn.

    The filters stay, because one that is taken back would change those of other threads.
    """

    @wraps(function)
    def silent(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        # A logger's filters see its own lines only, so each of highdicom's needs one.
        for name in ("pydicom", *(one for one in list(logging.root.manager.loggerDict) if one.startswith("highdicom"))):
            logging.getLogger(name).addFilter(_FILTER)
        warnings.filterwarnings("ignore", module=r"(pydicom|highdicom)\.")
        token = _silent.set(True)
        try:
            function(*args, **kwargs)
        finally:
            _silent.reset(token)

    return silent
