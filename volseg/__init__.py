"""Segment medical volumes: a scan goes in, labels, volumes and honest quality flags come out, on the scan's own grid.

Names resolve when they are first used, so that importing volseg loads neither torch nor MONAI.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from volseg.errors import VolsegError
from volseg.version import __version__

if TYPE_CHECKING:
    from volseg import networks, training, transforms
    from volseg.api.ensemble import ensemble
    from volseg.api.evaluation import evaluate
    from volseg.api.result import Result
    from volseg.api.run import train
    from volseg.api.segmenter import Outcome, Segmenter
    from volseg.data.geometry import Geometry

__all__ = [
    "Geometry",
    "Outcome",
    "Result",
    "Segmenter",
    "VolsegError",
    "__version__",
    "ensemble",
    "evaluate",
    "networks",
    "train",
    "training",
    "transforms",
]

_HOMES = {
    "Geometry": "volseg.data.geometry",
    "Outcome": "volseg.api.segmenter",
    "Result": "volseg.api.result",
    "Segmenter": "volseg.api.segmenter",
    "ensemble": "volseg.api.ensemble",
    "evaluate": "volseg.api.evaluation",
    "train": "volseg.api.run",
}


def __getattr__(name: str) -> Any:
    """Import the home of a public name on its first use (PEP 562)."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in __all__:
        return import_module(f"volseg.{name}")
    raise AttributeError(f"module 'volseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
