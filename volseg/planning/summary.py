"""A short description of a fingerprint, shown with the plan."""

from collections.abc import Callable, Iterator

import numpy as np

from volseg.planning.fingerprint import Fingerprint


def summary(fingerprint: Fingerprint) -> Iterator[str]:
    """Lines on shapes, spacings, foreground intensities, the volume and contrast of each label, and warnings."""
    cases = fingerprint.cases
    yield f"{len(cases)} cases, along R x A x S:"
    yield f"  voxels      {_median_and_range(np.array([case.shape for case in cases]), '{:.0f}'.format)}"
    yield f"  spacing mm  {_median_and_range(np.array([case.spacing_mm for case in cases]), '{:.4g}'.format)}"
    for channel in fingerprint.channels:
        low, high = channel.percentiles
        yield (
            f"channel {channel.name}: 99 % of the foreground voxels between {low:.4g} and {high:.4g}, "
            f"mean {channel.mean:.4g}, standard deviation {channel.std:.4g}"
        )
    for name in fingerprint.labels:
        yield f"label {name}: {_label(fingerprint, name)}"
    for warning in fingerprint.warnings:
        yield f"warning: {warning}"


def _label(fingerprint: Fingerprint, name: str) -> str:
    """The number of cases with a label, and its median volume and contrast in them."""
    annotated = fingerprint.annotated(name)
    cases = f"{annotated} cases" if annotated == len(fingerprint.cases) else f"the {annotated} cases annotated for it"
    present = [case for case in fingerprint.cases if case.volumes_ml.get(name)]
    if not present:
        return "in no case" if annotated == len(fingerprint.cases) else f"in none of {cases}"
    volumes = [case.volumes_ml[name] for case in present if not case.unstated]
    median = f"median {np.median(volumes):.4g} mL" if volumes else "volume unknown"
    fractions = [case.volumes_ml[name] / case.scan_ml for case in present]
    text = f"in {len(present)} of {cases}, {median}, {100 * np.median(fractions):.2g} % of the scan"
    contrasts = np.array([case.contrasts[name] for case in present if name in case.contrasts])
    if not len(contrasts):
        return text
    medians = zip(fingerprint.channels, np.median(contrasts, axis=0), strict=True)
    differences = ", ".join(f"{contrast:+.2f} standard deviations in {channel.name}" for channel, contrast in medians)
    return f"{text}, contrast to the rest of the scan {differences}"


def _median_and_range(rows: np.ndarray, shown: Callable[[float], str]) -> str:
    """Median, smallest and largest of (cases, 3) numbers."""
    median, low, high = (
        " x ".join(map(shown, column)) for column in (np.median(rows, axis=0), rows.min(axis=0), rows.max(axis=0))
    )
    return f"median {median}, from {low} to {high}"
