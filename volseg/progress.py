"""How long work tells how far it is."""

from collections.abc import Callable

# Called with the stage ("read", "train", ...), the share of it that is done (0 to 1), and a short text beside the bar.
Progress = Callable[[str, float, str], None]


def silent(stage: str, done: float, text: str) -> None:
    """A `Progress` that shows nothing."""
