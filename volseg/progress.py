"""The type of callbacks that report progress."""

import threading
from collections.abc import Callable

# Called with the stage ("read", "train", ...), the fraction done (0 to 1), and a short text to show next to it.
Progress = Callable[[str, float, str], None]


def silent(stage: str, done: float, text: str) -> None:
    """A `Progress` that shows nothing."""


def only_forwards(progress: Progress) -> Progress:
    """One that threads may call whose work is not equally far: it calls `progress` in one at a time, and never back."""
    furthest, alone = [0.0], threading.Lock()

    def show(stage: str, fraction: float, text: str) -> None:
        with alone:
            furthest[0] = max(furthest[0], fraction)
            progress(stage, furthest[0], text)

    return show
