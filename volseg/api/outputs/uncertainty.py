"""A map of uncertainty: the entropy of the calibrated probabilities at each voxel, on the grid of the scan."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from volseg.data.io.writing import write_fractions

SUFFIX = ".uncertainty.nii.gz"


def reason_for_none(result: Any) -> str:
    """Why a result has no map: it was not computed."""
    return "" if result.uncertainty is not None else "No map of uncertainty was computed; ask for it when segmenting."


def warnings(result: Any) -> Sequence[str]:
    """That the probabilities are those of the network as they are."""
    if all(one.is_calibrated for one in result.confidence.values()):
        return ()
    return ("The map of uncertainty is of uncalibrated probabilities (temperature 1): the model has no calibration.",)


def write(result: Any, path: Path) -> None:
    """Write `Result.uncertainty` as NIfTI, 0 (certain) to 1 (all classes equally likely), in steps of 1/255.

    Raises:
        ResourceError: the disk is full or not writable.
    """
    write_fractions(result.uncertainty, result.scan, path)
