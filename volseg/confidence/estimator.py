"""What a segmentation needs for its confidence: an observer of the logits, and the estimates when it is done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from volseg.confidence.estimate import UNCALIBRATED, Confidence, estimate, without_removed
from volseg.confidence.sums import Sums, SumsObserver
from volseg.modelfile import ModelCard


class Measured(Protocol):
    """What has to be known of a label of a result: see `volseg.inference.quality.LabelQuality`."""

    @property
    def name(self) -> str:
        """Of the label."""

    @property
    def voxels(self) -> int:
        """Their number."""

    @property
    def volume_ml(self) -> float | None:
        """The volume; None where it cannot be stated."""


@dataclass(frozen=True)
class Estimator:
    """The confidence of one result in the making.

    Args:
        card: of the model.
        observer: to be called with all logits in network space; None for a model without calibration, where nothing is
            computed.
    """

    card: ModelCard
    observer: SumsObserver | None

    @classmethod
    def of(cls, card: ModelCard) -> "Estimator":
        """An estimator for one scan."""
        known = card.calibration
        return cls(card, SumsObserver(card.plan, (known.temperature,)) if known else None)

    def confidence(
        self,
        measures: Sequence[Measured],
        cleaned: Mapping[str, Mapping[str, Any]],
        voxel_ml: float,
    ) -> dict[str, Confidence]:
        """The confidence of each label by name.

        Args:
            measures: of the labels of the plan, in its order.
            cleaned: what postprocessing did by label name, with `voxels_removed`.
            voxel_ml: volume of a voxel of network space.
        """
        if self.observer is None or self.card.calibration is None:
            return {one.name: Confidence(reason=UNCALIBRATED) for one in measures}
        # A label of a few voxels in network space may have none in the label image.
        removed = {
            index: 1.0
            if one.voxels == 0
            else cleaned[one.name]["voxels_removed"] / (cleaned[one.name]["voxels_removed"] + one.voxels)
            for index, one in enumerate(measures)
            if one.name in cleaned or one.voxels == 0
        }
        sums = without_removed(Sums(*(values[0] for values in self.observer.sums)), removed)
        volumes = {one.name: one.volume_ml for one in measures}
        return estimate(sums, self.card.calibration, volumes, voxel_ml)
