"""Parts of a run that its caller brings as Python objects: a loss, a network, transforms, an optimiser, callbacks."""

import functools
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from volseg.errors import TrainingError, UsageError
from volseg.networks.own import NetworkFactory, require_factory
from volseg.text import first_few
from volseg.training.losses import PlainLoss
from volseg.training.moments import OptimiserFactory
from volseg.training.state import TrainingState

logger = logging.getLogger(__name__)

# Called after each step with its record, as it goes to metrics.jsonl, and the state of the run: the network, the EMA of
# its weights (`state.ema`, in evaluation mode, which becomes the model), the optimiser, the step and the seconds. True
# ends the run early, with model, scores and report; False or None goes on. Of several processes the first calls it.
Callback: TypeAlias = Callable[[dict[str, Any], TrainingState], bool | None]
# A function of a sample {"image": (C, D, H, W) float32, "label": (1, D, H, W)} to such a sample.
Change: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
_ADVICE = "Give a function, of transforms and callbacks also a list; training.loss takes the name of a loss"


@dataclass(frozen=True)
class Custom:
    """Parts of a run that are Python objects of the caller, and not in the configuration.

    Args:
        loss: of one resolution, see `volseg.losses.SegmentationLoss`; None: the one of the configuration.
        network: makes the network from the plan, see `volseg.networks.own`; None: the planned U-Net.
        transforms: appended to the random augmentation, see `volseg.transforms.augmentation`.
        optimiser: makes the optimiser, see `volseg.training.moments`; None: Muon.
        callbacks: called after each step, see `Callback`.
    """

    loss: PlainLoss | None = None
    network: NetworkFactory | None = None
    transforms: tuple[Change, ...] = ()
    optimiser: OptimiserFactory | None = None
    callbacks: tuple[Callback, ...] = ()

    @classmethod
    def checked(cls, loss: Any, network: Any, transforms: Any, optimiser: Any, callbacks: Any) -> "Custom":
        """What a caller gives; a single transform or callback stands for a list of it.

        Raises:
            UsageError: one is of another type.
        """
        single = {"loss": loss, "network": network, "optimiser": optimiser}
        listed = {"transforms": _listed(transforms), "callbacks": _listed(callbacks)}
        if isinstance(optimiser, torch.optim.Optimizer) or _takes_parameters(optimiser):
            raise UsageError(
                "optimiser is an optimiser of torch; give a function that makes it: optimiser=lambda network, rate, "
                "decay: torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay)."
            )
        several = [(name, one) for name, every in listed.items() for one in every]
        given = [(name, one) for name, one in single.items() if one is not None]
        for name, part in [*given, *several]:
            if not callable(part):
                raise UsageError(f"{name} has to be a function, found {type(part).__name__} {part!r}. {_ADVICE}.")
        for name, part in [("loss", loss), *several]:
            if isinstance(part, type):
                raise UsageError(f"{name} is the class {part.__name__}; give an object of it: {part.__name__}().")
        if network is not None:
            require_factory(network)
        return cls(loss, network, listed["transforms"], optimiser, listed["callbacks"])

    def described(self) -> dict[str, str]:
        """Their qualified names, for the settings and the model card."""
        parts = {
            "loss": (self.loss,),
            "network": (self.network,),
            "transforms": self.transforms,
            "optimiser": (self.optimiser,),
        }
        names = {name: ", ".join(_qualified_name(one) for one in every if one) for name, every in parts.items()}
        return {name: text for name, text in names.items() if text}

    def require_same(self, started: Mapping[str, str], run: Path, finish: bool) -> None:
        """Check that a run that goes on has the parts that it was started with.

        Args:
            started: name and qualified name of each.
            run: its folder, for messages.
            finish: it is only ended, for which the network is enough.

        Raises:
            UsageError: one is missing; or there is a network or an optimiser that it was started without.
        """
        found = self.described()
        needed = [name for name in started if name == "network" or not finish]
        if missing := [name for name in needed if name not in found]:
            parts = first_few([f"{name} {started[name]}" for name in missing])
            given = ", ".join(f"{name}=..." for name in missing)
            call = "finish=True" if finish else "resume=True"
            raise UsageError(
                f"The run in {run} was started with parts of its caller's own ({parts}), which are not in its folder. "
                f"Go on in Python: volseg.train(dataset, {str(run)!r}, {call}, {given})."
            )
        if more := [name for name in ("network", "optimiser") if name in found and name not in started]:
            raise UsageError(
                f"The run in {run} was started without {first_few([f'{name}=' for name in more])}. Leave it out, or "
                "start another run."
            )
        for name in found.keys() - started.keys():
            logger.warning("The run in %s goes on with %s=%s, which it was started without", run, name, found[name])


class AfterStep:
    """Calls the callbacks after each step, once its record is written.

    Args:
        callbacks: of the caller.
        state: of the run.
        record: what writes the record of a step.
        save: writes the checkpoint; called where a callback fails.
    """

    def __init__(
        self,
        callbacks: Sequence[Callback],
        state: TrainingState,
        record: Callable[[dict[str, Any]], object],
        save: Callable[[], None],
    ) -> None:
        self._callbacks, self._state, self._record, self._save = callbacks, state, record, save

    def __call__(self, record: dict[str, Any]) -> None:
        """Write a record, then call each callback with a copy of it.

        Raises:
            TrainingError: a callback raised an error, or returned something else than True, False or None.
        """
        self._record(record)
        for callback in self._callbacks:
            try:
                answer = callback(dict(record), self._state)
            except Exception as error:
                self._save()
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                raise self._failed(callback, f"raised {reason.rstrip('.: ')}") from error
            if answer is not None and not isinstance(answer, bool | np.bool_):
                self._save()
                raise self._failed(callback, f"returned {answer!r}, expected True, False or None")
            self._state.ended = self._state.ended or bool(answer)

    def _failed(self, callback: Callback, what: str) -> TrainingError:
        return TrainingError(
            f"The callback {_qualified_name(callback)} {what} after step {self._state.step}. The checkpoint is saved; "
            "mend the callback and go on with resume=True."
        )


def _listed(parts: Any) -> tuple[Any, ...]:
    if parts is None:
        return ()
    return tuple(parts) if isinstance(parts, list | tuple) else (parts,)


def _takes_parameters(optimiser: Any) -> bool:
    """Whether it is a class of torch, which is called with parameters; volseg's Muon is called with a network."""
    is_class = isinstance(optimiser, type) and issubclass(optimiser, torch.optim.Optimizer)
    return is_class and next(iter(inspect.signature(optimiser).parameters)) == "params"


def _qualified_name(part: Any) -> str:
    """The qualified name of a function or of the class of an object."""
    while isinstance(part, functools.partial):
        part = part.func
    named = part if hasattr(part, "__qualname__") else type(part)
    return f"{named.__module__}.{named.__qualname__}"
