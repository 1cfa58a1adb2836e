"""Labels of a model that a dataset lacks, kept by the model's own confident predictions.

Before the first step the model segments each training case once, in network space. Where the reference says background,
a voxel becomes a kept label if the model gives it a probability of at least `CONFIDENT`, and stays background if all
kept labels together have at most 1 - `CONFIDENT`; all others are ambiguous, and left out of the loss. The merged label
image of a case is three files in its cache, which a resumed or another run finds again:

    kept.KEY.label.blocks       (1, D, H, W) int16 class indices, `IGNORED` where ambiguous
    kept.KEY.foreground.blocks  as for any case, see `volseg.data.cases.cache`
    kept.KEY.json               row ranges of the foreground voxels; written last
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from volseg.config import IGNORED, Plan
from volseg.data.cases.cache import FOREGROUND, LABEL, VOXEL_BLOCK, CachedCase, foreground_table
from volseg.data.cases.chunked_arrays import open_chunked, write_chunked
from volseg.errors import ResourceError
from volseg.files import as_tuples, open_regular, write_json
from volseg.finetuning.source import Source
from volseg.finetuning.start import Start
from volseg.inference.budget import windows_at_once
from volseg.inference.labelling import computing, predictor_of
from volseg.inference.stream import Engine, stream_logits, stream_order
from volseg.inference.windows import Windows

CONFIDENT = 0.9
# Increased whenever what is written changes.
FORMAT = 1
MOST_JSON = 2**24


@dataclass(frozen=True)
class KeptCase(CachedCase):
    """A cached case whose label image has the kept labels, too.

    Args:
        kept: the common beginning of the paths of its own files.
        names: of the kept labels.
    """

    kept: Path = Path()
    names: tuple[str, ...] = ()

    @property
    def looked_for(self) -> list[bool]:
        """As for any case; the model has looked for the kept labels, which are none of the dataset's, in every case."""
        labels = self.plan.labels
        return [found or label.name in self.names for found, label in zip(super().looked_for, labels, strict=True)]

    def read(self, part: str, index: Any) -> np.ndarray:
        """A slice of one of the case's files; the scan is that of the plain case.

        Raises:
            ResourceError: a file with the kept labels is damaged; a resumed run writes it again.
        """
        if part not in (LABEL, FOREGROUND):
            return super().read(part, index)
        try:
            return open_chunked(_part(self.kept, part))[index]
        except (OSError, ValueError) as error:
            _part(self.kept, "json").unlink(missing_ok=True)
            raise ResourceError(
                f"Case {self.case.name}: its kept labels in the cache cannot be read "
                f"({getattr(error, 'strerror', None) or error}). Resume with --resume, which predicts them again."
            ) from error


@dataclass(frozen=True)
class Keeper:
    """What predicts the kept labels of cases.

    Args:
        find_source: gives the model; called only if a case is not in the cache.
        start: which labels are kept.
        plan: of the new network.
        device: that computes.
        dtype: of feature maps.
    """

    find_source: Callable[[], Source]
    start: Start
    plan: Plan
    device: torch.device
    dtype: torch.dtype

    @cached_property
    def _model(self) -> tuple[Plan, nn.Module]:
        source = self.find_source()
        return source.card.plan, source.network().to(self.device)

    @cached_property
    def key(self) -> str:
        """Identifies the model and what of it is kept, under which classes."""
        classes = {label.name: number for number, label in enumerate(self.plan.labels, start=1)}
        kept = {name: classes[name] for name in self.start.labels.kept}
        facts = {"format": FORMAT, "model": self.start.sha256, "kept": kept, "channels": self.start.channels.taken}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def merged(self, case: CachedCase) -> np.ndarray:
        """The class indices (D, H, W) int16 of a case with the kept labels."""
        model, network = self._model
        names = list(self.start.channels.taken.values())
        # In the order of the model; a channel that it does not know is left out.
        volume = torch.from_numpy(case.image[...])[[names.index(channel.name) for channel in model.channels]]
        of_model = [label.name for label in model.labels]
        of_plan = [label.name for label in self.plan.labels]
        rows = [of_model.index(name) + 1 for name in self.start.labels.kept]
        classes = torch.tensor([of_plan.index(name) + 1 for name in self.start.labels.kept], dtype=torch.int16)
        found = torch.empty(volume.shape[1:], dtype=torch.int16)
        windows = Windows(model.patch_size, batch_size=windows_at_once(model, self.dtype, self.device))
        engine = Engine(predictor_of(network, self.device, self.dtype), windows, self.device)
        d, h, w = found.shape
        order = stream_order((d, h, w))
        planes = found.permute(order)
        with torch.inference_mode(), computing(engine, volume, self.dtype):
            for first, logits in stream_logits(volume, engine, order):
                planes[first : first + logits.shape[1]] = _kept_classes(logits, rows, classes).cpu()
        label = case.label[...][0].astype(np.int16)
        return np.where(label == 0, found.numpy(), label)


def keep_labels(
    cases: Sequence[CachedCase], keeper: Keeper, progress: Callable[[int, int], None] | None = None
) -> list[CachedCase]:
    """Cases with the kept labels in their label images; those that are in the cache are not predicted again.

    Args:
        cases: to train on.
        keeper: predicts the labels.
        progress: called after each case with the number of finished cases and of all cases.

    Raises:
        VolsegError: the model cannot be read again, or a file cannot be written.
    """
    return list(_kept(cases, keeper, progress))


def _kept(
    cases: Sequence[CachedCase], keeper: Keeper, progress: Callable[[int, int], None] | None
) -> Iterator[CachedCase]:
    for done, case in enumerate(cases, start=1):
        stem = case.stem.with_name(f"{case.stem.name}.kept.{keeper.key}")
        names = keeper.start.labels.kept
        found = _load(case, stem, names)
        if found is None:
            _write(keeper.merged(case), keeper.plan, stem)
            found = _load(case, stem, names)
        if found is None:
            raise ResourceError(f"Case {case.case.name}: {stem.name}.* changes while it is written. Start again.")
        yield found
        if progress:
            progress(done, len(cases))


def _kept_classes(logits: Tensor, rows: Sequence[int], classes: Tensor) -> Tensor:
    """The kept label at each voxel: its class, 0 for background, or `IGNORED`.

    Args:
        logits: (K, planes, rows, columns) of the model.
        rows: its classes that are kept.
        classes: (kept,) int16, the new class of each of them.
    """
    probabilities = logits.float().softmax(0)[list(rows)]
    best, which = probabilities.max(0)
    ambiguous = probabilities.sum(0) > 1 - CONFIDENT
    found = torch.where(best >= CONFIDENT, classes.to(which.device)[which], torch.tensor(0, dtype=torch.int16))
    return torch.where(ambiguous & (best < CONFIDENT), torch.tensor(IGNORED, dtype=torch.int16), found)


def _write(label: np.ndarray, plan: Plan, stem: Path) -> None:
    foreground, ranges, annotated = foreground_table(label, plan)
    write_chunked(_part(stem, LABEL), label[None])
    write_chunked(_part(stem, FOREGROUND), foreground, VOXEL_BLOCK)
    write_json(_part(stem, "json"), {"foreground_ranges": ranges, "known_range": annotated})


def _load(case: CachedCase, stem: Path, names: tuple[str, ...]) -> KeptCase | None:
    """The case with the files of its kept labels; None if they are incomplete or of other shapes."""
    try:
        with open_regular(_part(stem, "json")) as handle:
            document = json.loads(handle.read(MOST_JSON))
        ranges, annotated = (as_tuples(document[key]) for key in ("foreground_ranges", "known_range"))
        label, voxels = open_chunked(_part(stem, LABEL)), open_chunked(_part(stem, FOREGROUND))
        last = max(stop for _, stop in (*ranges, annotated or (0, 0)))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if (label.shape, label.dtype.name, voxels.shape) != ((1, *case.shape), "int16", (last, 3)):
        return None
    plain = {one.name: getattr(case, one.name) for one in fields(CachedCase)}
    return KeptCase(**{**plain, "foreground_ranges": ranges, "annotated_range": annotated}, kept=stem, names=names)


def _part(stem: Path, part: str) -> Path:
    return stem.with_name(f"{stem.name}.{part}")
