"""Parts of a run that its caller brings as Python objects."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from volseg.errors import UsageError
from volseg.training.losses import PlainLoss


@dataclass(frozen=True)
class Custom:
    """Parts of a run that are Python objects of the caller, and not in the configuration.

    Args:
        loss: of one resolution, see `volseg.losses.SegmentationLoss`; None: the one of the configuration.
        transforms: appended to the random augmentation, see `volseg.transforms.augmentation`.
    """

    loss: PlainLoss | None = None
    transforms: tuple[Callable[[dict[str, Any]], dict[str, Any]], ...] = ()

    @classmethod
    def checked(cls, loss: Any, transforms: Any) -> "Custom":
        """What a caller gives as loss and transforms.

        Raises:
            UsageError: one is of another type.
        """
        listed = isinstance(transforms, Sequence) and not isinstance(transforms, str)
        if not (loss is None or callable(loss)) or not listed or not all(map(callable, transforms)):
            raise UsageError("The loss must be a function, the transforms a list of them; training.loss takes a name.")
        if isinstance(loss, type):
            raise UsageError(f"The loss is the class {loss.__name__}; give an object of it: {loss.__name__}().")
        return cls(loss, tuple(transforms))

    def described(self) -> dict[str, str]:
        """Their names, for the model card."""
        parts = {
            "loss": "" if self.loss is None else _qualified_name(self.loss),
            "transforms": ", ".join(map(_qualified_name, self.transforms)),
        }
        return {f"custom_{name}": text for name, text in parts.items() if text}


def _qualified_name(part: Any) -> str:
    """The qualified name of a function or of the class of an object."""
    named = part if hasattr(part, "__qualname__") else type(part)
    return f"{named.__module__}.{named.__qualname__}"
