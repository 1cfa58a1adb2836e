"""The result for one scan, and its files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from volseg.api.outputs import OutputFormat, find_formats
from volseg.confidence.estimate import Confidence
from volseg.config import Label
from volseg.data.io.formats import DICOM_SUFFIXES, sibling
from volseg.data.io.inputs import protect_scans
from volseg.data.io.reading import Scan
from volseg.errors import InputError, UsageError
from volseg.files import given_path, whole_files, write_json
from volseg.inference.quality import LabelQuality
from volseg.version import __version__


@dataclass(frozen=True, repr=False)
class Result:
    """Labels in the space of the scan, with volumes and quality flags.

    Attributes:
        labels: (I, J, K) uint8 (uint16 past 255), the values of `shown`, 0 is background.
        measures: voxels, volume and flags per label.
        scan_flags: flags of the scan as a whole.
        scan: the scan that was segmented.
        shown: the labels of the model.
        run: model, device, precision, voxels removed by postprocessing, seconds per stage, peak memory.
        probabilities: (C, I, J, K) float16, if requested: background first, then the labels; without background for a
            model of overlapping regions. They are the output of the network: postprocessing changes only the labels.
        formats: the output formats that it is written in, for the record.
        not_written: formats that were asked for and cannot hold it, with the reason, for the record.
        confidence: by label name the expected Dice and the interval of the volume, or why there is none.
        uncertainty: (I, J, K) float16, if requested: the entropy of the calibrated probabilities, 0 certain to 1
            undecided, before postprocessing.
        suspicions: what its flags about the whole scan and its confidence rest on, one sentence each.
    """

    labels: np.ndarray
    measures: tuple[LabelQuality, ...]
    scan_flags: tuple[str, ...]
    scan: Scan
    shown: tuple[Label, ...]
    run: dict[str, Any]
    probabilities: np.ndarray | None = None
    formats: tuple[str, ...] = ()
    not_written: Mapping[str, str] = field(default_factory=dict)
    confidence: Mapping[str, Confidence] = field(default_factory=dict)
    uncertainty: np.ndarray | None = None
    suspicions: tuple[str, ...] = ()

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.labels.shape))
        volumes = ", ".join(f"{name}: {'-' if ml is None else f'{ml:.4g} mL'}" for name, ml in self.volumes_ml.items())
        return f"<volseg.Result {size}, {volumes}>"

    @property
    def volumes_ml(self) -> dict[str, float | None]:
        """Volume in mL by label name; None where no volume can be stated."""
        return {measure.name: measure.volume_ml for measure in self.measures}

    @property
    def expected_dice(self) -> dict[str, float | None]:
        """The Dice expected of each label by name; None where it cannot be stated, see `confidence`."""
        return {
            measure.name: self.confidence.get(measure.name, Confidence()).expected_dice for measure in self.measures
        }

    @property
    def flags(self) -> tuple[str, ...]:
        """All quality flags as "label: flag", and "scan: flag" for those about the whole scan."""
        of_labels = [f"{measure.name}: {flag}" for measure in self.measures for flag in measure.flags]
        return (*(f"scan: {flag}" for flag in self.scan_flags), *of_labels)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What had to be assumed about the scan and what is suspect about it, one sentence each."""
        return (*self.scan.warnings, *self.suspicions)

    @property
    def record(self) -> dict[str, Any]:
        """The JSON document that is written next to the label image."""
        values = {label.name: label.value for label in self.shown}
        return {
            "volseg_version": __version__,
            **self.run,
            "labels": {
                measure.name: {
                    "value": values[measure.name],
                    "voxels": measure.voxels,
                    "volume_ml": measure.volume_ml,
                    "reason": measure.reason,
                    **self.confidence.get(measure.name, Confidence()).document,
                    "flags": list(measure.flags),
                }
                for measure in self.measures
            },
            "flags": list(self.flags),
            "warnings": list(self.warnings),
            "formats": list(self.formats),
            "not_written": dict(self.not_written),
        }

    def save(self, path: str | Path, to: str | Sequence[str] = "nifti") -> None:
        """Write the result to `path`, and its JSON record to `<stem>.json` next to it, all of them or none.

        Args:
            path: the file; for "nifti" a name that ends in an image suffix, which is the image format. For several
                formats, the label image: the others get its name with their own suffixes.
            to: the output format, one of `volseg.api.outputs.format_names()`, with options after colons
                ("dicom-seg:labelmap"); or several, in a list or with commas.

        Raises:
            UsageError: the format does not exist, `path` does not end in its suffix, or it is the scan.
            InputError: the format cannot hold this result: the scan is no DICOM series, or nothing was found.
            ResourceError: the disk is full or not writable.
        """
        path, outputs = given_path(path), find_formats(to)
        alone = outputs[0] if len(outputs) == 1 else None
        record_path = _record_of(path, alone.suffix if alone else None)
        _check_name(path, alone)
        protect_scans([path, record_path], [Path(self.scan.source)])
        for one in outputs:
            if reason := one.reason_for_none(self):
                raise InputError(f"{self.scan.source}: {reason}")
        result = self.with_warnings(outputs)
        record = result.record if self.formats else replace(result, formats=tuple(one.asked for one in outputs)).record
        with whole_files(path.parent, path.name) as folder:
            write_json(folder / record_path.name, record)
            for one in outputs:
                file = folder / path.name
                one.write(result, file if alone or one.suffix is None else sibling(file, one.suffix))

    def with_warnings(self, formats: Sequence[OutputFormat]) -> "Result":
        """The same, with what has to be assumed about it for files in these formats among its warnings."""
        more = [warning for one in formats for warning in one.warnings(self)]
        warnings = tuple(dict.fromkeys((*self.scan.warnings, *more)))
        return replace(self, scan=replace(self.scan, warnings=warnings)) if more else self


def _check_name(path: Path, output: OutputFormat | None) -> None:
    """Reject a name that does not end as files of its format do; without a format, one that is no label image.

    Raises:
        UsageError: as above.
    """
    if output is None or output.suffix is None:
        if path.suffix.lower() in DICOM_SUFFIXES:
            raise UsageError(
                f'{path.name} is no name for a label image. For a DICOM object say which, such as to="dicom-seg"; for '
                "a label image give a name that ends in .nii.gz."
            )
    elif path.suffix.lower() != f".{output.suffix.rpartition('.')[2]}":
        raise UsageError(f"{path.name} is no name for {output.name}. Give one that ends in {output.suffix}.")
    elif _record_of(path, output.suffix) == path:
        raise UsageError(f"{path.name} is the name of the record of the result. Give {output.name} another suffix.")


def _record_of(path: Path, suffix: str | None) -> Path:
    """The JSON record next to the result `path`: the same name, with .json in place of the suffix of its format."""
    if suffix is None:
        return sibling(path, ".json")
    stem = path.name.removesuffix(suffix) if path.name.endswith(suffix) else path.stem
    return path.with_name(f"{stem}.json")
