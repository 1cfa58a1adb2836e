"""A fingerprint in a few lines for the reader of a plan."""

from collections.abc import Callable, Iterator

import numpy as np

from volseg.planning.fingerprint import Fingerprint


def summary(fingerprint: Fingerprint) -> Iterator[str]:
    """Shapes, spacings, intensities of the labelled voxels, and of each label its size and contrast."""
    cases = fingerprint.cases
    yield f"{len(cases)} cases, along R x A x S:"
    yield f"  voxels      {_spread(np.array([case.shape for case in cases]), '{:.0f}'.format)}"
    yield f"  spacing mm  {_spread(np.array([case.spacing_mm for case in cases]), '{:.4g}'.format)}"
    for channel in fingerprint.channels:
        low, high = channel.percentiles
        yield (
            f"channel {channel.name}: 99 % of the labelled voxels within {low:.4g} and {high:.4g}, "
            f"mean {channel.mean:.4g}, deviation {channel.std:.4g}"
        )
    for name in cases[0].volumes_ml:
        yield f"label {name}: {_label(fingerprint, name)}"


def _label(fingerprint: Fingerprint, name: str) -> str:
    """In how many cases a label is, and its median size and contrast there."""
    cases = fingerprint.cases
    present = [case for case in cases if case.volumes_ml[name]]
    if not present:
        return "in no case"
    volumes = [case.volumes_ml[name] for case in present]
    shares = [case.volumes_ml[name] / case.whole_ml for case in present]
    text = (
        f"in {len(present)} of {len(cases)} cases, median {np.median(volumes):.4g} ml, "
        f"{100 * np.median(shares):.2g} % of the scan"
    )
    contrasts = np.array([case.contrasts[name] for case in present if name in case.contrasts])
    if not len(contrasts):
        return text
    medians = zip(fingerprint.channels, np.median(contrasts, axis=0), strict=True)
    against = ", ".join(f"{contrast:+.2f} deviations in {channel.name}" for channel, contrast in medians)
    return f"{text}, against the rest of it {against}"


def _spread(rows: np.ndarray, shown: Callable[[float], str]) -> str:
    """Median, smallest and largest of (cases, 3) numbers."""
    median, low, high = (
        " x ".join(map(shown, column)) for column in (np.median(rows, axis=0), rows.min(axis=0), rows.max(axis=0))
    )
    return f"median {median}, from {low} to {high}"
