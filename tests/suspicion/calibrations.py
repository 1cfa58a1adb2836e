"""Calibrations that change no probability."""

from volseg.modelfile.calibration import BINS, Calibration, LabelCalibration, Reliability

NOTHING = Reliability(voxels=(0,) * BINS, probability=(0.0,) * BINS, frequency=(0.0,) * BINS, error=0.0)


def calibration_of(**limits: float | None) -> Calibration:
    """A calibration with these thresholds of low confidence, by label."""
    labels = {name: LabelCalibration(low_confidence=limit) for name, limit in limits.items()}
    return Calibration(labels=labels, before=NOTHING, after=NOTHING)
