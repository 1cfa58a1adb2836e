"""Whether scans fit a model: their intensities its normalisation, their spacing its grid."""

import numpy as np

from volseg.config import ABSOLUTE, MODALITIES, Channel, Plan, known_name
from volseg.planning.channels import outward
from volseg.planning.fingerprint import ChannelFingerprint, Fingerprint

# The spacing of scans fits while it is within this factor of the model's along every axis.
SPACING = 1.5
# Intensities fit while at most this fraction of the foreground is outside the range that the model clips to.
CLIPPED = 0.25
# Intensities of RGB images.
RGB = (0.0, 255.0)


def channel_of(model: Channel, fingerprint: Fingerprint, index: int, anew: Channel) -> tuple[Channel, str]:
    """A channel with the normalisation of the model, or planned anew with the reason.

    Args:
        model: the channel of the model.
        fingerprint: of the dataset.
        index: of the channel in the dataset.
        anew: the channel as planned for the dataset alone.

    Returns:
        The channel, and "" where the model's normalisation fits.
    """
    found = fingerprint.channels[index]
    samples = np.concatenate([case.samples[index] for case in fingerprint.cases])
    why = _misfit(model, found, samples)
    if why and (anew.normalisation in ABSOLUTE or anew.normalisation != model.normalisation):
        return anew, why
    mean_range = outward(found.mean_range) if model.normalisation in ABSOLUTE else None
    return model.model_copy(update={"name": found.name, "mean_range": mean_range}), ""


def spacing_note(fingerprint: Fingerprint, model: Plan) -> str:
    """The line of the table on the spacing: what the plan keeps, and why."""
    found = np.median([case.spacing_mm for case in fingerprint.cases], axis=0)
    # The axes of scans as stored have no fixed direction, so only the sorted spacings can be compared.
    stored = model.orientation == "stored"
    shown = tuple(float(value) for value in (np.sort(found) if stored else found[list(model.axes)]))
    wanted = tuple(sorted(model.spacing_mm)) if stored else model.spacing_mm
    pairs = list(zip(shown, wanted, strict=True))[model.dimensions == 2 :]
    kept = f"spacing kept, {_text(model.spacing_mm)} mm"
    if all(1 / SPACING <= one / other <= SPACING for one, other in pairs):
        return f"{kept}; the scans have {_text(shown)} mm in the median"
    return (
        f"{kept}, though the scans have {_text(shown)} mm in the median: the weights know structures at that size, so "
        "scans are resampled to it. Where that loses what you need, train without --from"
    )


def _misfit(model: Channel, found: ChannelFingerprint, samples: np.ndarray) -> str:
    """Why the model's normalisation does not suit the intensities of a channel; "" if it does.

    Only normalisations with fixed numbers can misfit; the others adapt to each scan.
    """
    if model.normalisation not in ABSOLUTE:
        return ""
    name = known_name(found.name, MODALITIES)
    if model.normalisation == "ct" and name and MODALITIES[name] != "CT":
        return f"it is normalised as CT, and these scans are {MODALITIES[name]} by their channel's name"
    limits = {"ct": model.clip, "rgb": RGB}.get(model.normalisation)
    if limits:
        outside = float(np.mean((samples < limits[0]) | (samples > limits[1])))
        if outside > CLIPPED:
            return (
                f"{100 * outside:.0f} % of the foreground lie outside the {limits[0]:g} to {limits[1]:g} that it "
                "clips to" if model.normalisation == "ct" else f"{100 * outside:.0f} % are outside 0 to 255"
            )  # fmt: skip
    return _far_off(model, found)


def _far_off(model: Channel, found: ChannelFingerprint) -> str:
    """Why mean intensities of scans lie far from those of the model's training scans; "" if they do not."""
    if model.mean_range is None:
        return ""
    low, high = model.mean_range
    # Fields of view and objects differ, so as far as the range is wide, and as the intensities vary, is still near.
    margin = (high - low) + max(found.std, model.std or 0.0)
    if found.mean_range[1] >= low - margin and found.mean_range[0] <= high + margin:
        return ""
    return (
        f"the mean intensities of its training scans are {low:g} to {high:g}, those of these scans "
        f"{found.mean_range[0]:g} to {found.mean_range[1]:g}"
    )


def _text(spacing: tuple[float, ...]) -> str:
    return " x ".join(f"{value:.3g}" for value in spacing)
