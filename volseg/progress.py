"""The type of callbacks that report progress."""

from collections.abc import Callable

# Called with the stage ("read", "train", ...), the fraction done (0 to 1), and a short text to show next to it.
Progress = Callable[[str, float, str], None]


def silent(stage: str, done: float, text: str) -> None:
    """A `Progress` that shows nothing."""
