"""What comes out for one scan, and how it is written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volseg.config import Label
from volseg.data.formats import beside
from volseg.data.reading import Scan
from volseg.data.writing import write_labels
from volseg.files import as_json, whole_file
from volseg.inference.quality import LabelQuality
from volseg.version import __version__


@dataclass(frozen=True)
class Result:
    """Labels on the scan's own grid, and what was found out about them.

    Attributes:
        labels: (I, J, K) uint8 (uint16 past 255), the values of `shown`, 0 is background.
        measures: voxels, volume and flags per label.
        scan_flags: flags of the scan as a whole.
        scan: what was segmented.
        shown: the model's labels.
        run: model, device, precision, what postprocessing removed, seconds per stage, peak memory.
    """

    labels: np.ndarray
    measures: tuple[LabelQuality, ...]
    scan_flags: tuple[str, ...]
    scan: Scan
    shown: tuple[Label, ...]
    run: dict[str, Any]

    @property
    def volumes_ml(self) -> dict[str, float | None]:
        """Millilitres per label name; None where no volume can be stated."""
        return {measure.name: measure.volume_ml for measure in self.measures}

    @property
    def flags(self) -> tuple[str, ...]:
        """All quality flags as "label: flag", and "scan: flag" for those about the whole scan."""
        of_labels = [f"{measure.name}: {flag}" for measure in self.measures for flag in measure.flags]
        return (*(f"scan: {flag}" for flag in self.scan_flags), *of_labels)

    @property
    def record(self) -> dict[str, Any]:
        """The JSON document that is written beside the label image."""
        return {
            "volseg_version": __version__,
            **self.run,
            "labels": {
                measure.name: {
                    "voxels": measure.voxels,
                    "volume_ml": measure.volume_ml,
                    "reason": measure.reason,
                    "flags": list(measure.flags),
                }
                for measure in self.measures
            },
            "flags": list(self.flags),
            "warnings": list(self.scan.warnings),
        }

    def save(self, path: str | Path) -> None:
        """Write the label image to `path` and its record to `<stem>.json` beside it, each whole or not at all.

        Raises:
            UsageError: the suffix of `path` is no image format.
            ResourceError: the disk refused the bytes.
        """
        path = Path(path)
        # The record has its bytes on the disk before the label image appears, and appears only if that does.
        with whole_file(beside(path, ".json")) as temporary:
            temporary.write_text(as_json(self.record), encoding="utf-8")
            write_labels(self.labels, self.scan, path)
