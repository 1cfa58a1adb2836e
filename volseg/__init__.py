"""Segment medical volumes (MRI, CT): labels, volumes in mL and quality flags, in the space of the input image.

Names are resolved on first use, so that importing volseg loads neither torch nor MONAI.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from volseg.errors import VolsegError
from volseg.version import __version__

if TYPE_CHECKING:
    from volseg import inference, losses, metrics, networks, training, transforms
    from volseg.api.audit.audit import audit
    from volseg.api.convert import convert
    from volseg.api.ensemble import ensemble
    from volseg.api.evaluation import compare, evaluate
    from volseg.api.importing import import_nnunet
    from volseg.api.predict import predict
    from volseg.api.predicting.files import Prediction
    from volseg.api.result import Result
    from volseg.api.segmenter import Outcome, Segmenter
    from volseg.api.train import plan_dataset as plan
    from volseg.api.train import train
    from volseg.data.grid.geometry import Geometry

__all__ = [
    "Geometry",
    "Outcome",
    "Prediction",
    "Result",
    "Segmenter",
    "VolsegError",
    "__version__",
    "audit",
    "compare",
    "convert",
    "ensemble",
    "evaluate",
    "import_nnunet",
    "inference",
    "losses",
    "metrics",
    "networks",
    "plan",
    "predict",
    "train",
    "training",
    "transforms",
]

# The module of each name, and its name there.
_HOMES = {
    "Geometry": ("volseg.data.grid.geometry", "Geometry"),
    "Outcome": ("volseg.api.segmenter", "Outcome"),
    "Prediction": ("volseg.api.predicting.files", "Prediction"),
    "Result": ("volseg.api.result", "Result"),
    "Segmenter": ("volseg.api.segmenter", "Segmenter"),
    "audit": ("volseg.api.audit.audit", "audit"),
    "compare": ("volseg.api.evaluation", "compare"),
    "convert": ("volseg.api.convert", "convert"),
    "ensemble": ("volseg.api.ensemble", "ensemble"),
    "evaluate": ("volseg.api.evaluation", "evaluate"),
    "import_nnunet": ("volseg.api.importing", "import_nnunet"),
    "plan": ("volseg.api.train", "plan_dataset"),
    "predict": ("volseg.api.predict", "predict"),
    "train": ("volseg.api.train", "train"),
}


def __getattr__(name: str) -> Any:
    """Import the module of a public name on its first use (PEP 562)."""
    if name in _HOMES:
        module, attribute = _HOMES[name]
        return getattr(import_module(module), attribute)
    if name in __all__:
        return import_module(f"volseg.{name}")
    raise AttributeError(f"module 'volseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
