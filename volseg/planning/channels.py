"""How the intensities of each channel are normalised, and whether scans are cropped to their nonzero region."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from volseg.config import ABSOLUTE, Channel, Normalisation, PlanChoices, checked, known_name
from volseg.errors import ConfigError
from volseg.planning.fingerprint import ChannelFingerprint, Fingerprint
from volseg.text import first_few

# Names of channels that name a normalisation, as in nnU-Net v2, which ignores their case.
NAMED: dict[str, Normalisation] = {
    "ct": "ct",
    "nonorm": "none",
    "zscore": "zscore",
    "rescale_to_0_1": "rescale",
    "rgb_to_0_1": "rgb",
}
# Scans are masked if the median one has at least this fraction of zeros around its contents.
MASKED = 0.25


def plan_channels(fingerprint: Fingerprint, choices: PlanChoices) -> tuple[tuple[Channel, ...], str]:
    """The channels with their normalisation, and the reason for it.

    Raises:
        ConfigError: a normalisation for a channel that the dataset does not have.
    """
    chosen = _chosen(fingerprint, choices)
    masked = masked_fraction(fingerprint)
    other: Normalisation = "zscore_nonzero" if masked >= MASKED else "zscore"
    channels: list[Channel] = []
    reasons: dict[str, list[str]] = {}
    for one in fingerprint.channels:
        known = known_name(one.name, NAMED)
        named = NAMED[known] if known else None
        channels.append(_channel(one, chosen.get(one.name) or named or other))
        why = "set by the configuration" if one.name in chosen else "its name says so" if named else _why(masked)
        reasons.setdefault(f"{channels[-1].normalisation}, {why}", []).append(one.name)
    return tuple(channels), "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())


def plan_crop(fingerprint: Fingerprint) -> tuple[Literal["none", "nonzero"], str]:
    """Whether scans are cropped to the bounding box of their nonzero voxels, and the reason."""
    masked = masked_fraction(fingerprint)
    if masked < MASKED:
        return "none", "scans are not masked"
    cut = [case.name for case in fingerprint.cases if case.cut_ml]
    if cut:
        return "none", f"{len(cut)} cases have labels where all channels are 0: {first_few(cut)}"
    return "nonzero", f"scans are masked: {100 * masked:.0f} % of the median scan are zeros around its contents"


def masked_fraction(fingerprint: Fingerprint) -> float:
    """The fraction of zeros around the contents of the median scan."""
    return float(np.median([case.masked for case in fingerprint.cases]))


def _why(masked: float) -> str:
    """The reason for the z-score where neither the channel's name nor the user asks for anything else."""
    if masked >= MASKED:
        return f"over the nonzero region, because {100 * masked:.0f} % of the median scan are zeros around its contents"
    return "of each scan"


def _chosen(fingerprint: Fingerprint, choices: PlanChoices) -> Mapping[str, Normalisation]:
    """The normalisations that the user has set, by channel."""
    names = [channel.name for channel in fingerprint.channels]
    if not isinstance(choices.normalisation, dict):
        return dict.fromkeys(names, choices.normalisation) if choices.normalisation else {}
    if unknown := sorted(set(choices.normalisation) - set(names)):
        raise ConfigError(
            f"plan.normalisation names the channel {first_few(unknown)}, but the dataset has {first_few(names)}."
        )
    return choices.normalisation


def _channel(channel: ChannelFingerprint, normalisation: Normalisation) -> Channel:
    document: dict[str, Any] = {"name": channel.name, "normalisation": normalisation}
    if normalisation in ABSOLUTE:
        document["mean_range"] = outward(channel.mean_range)
    if normalisation == "ct":
        document |= {
            "clip": outward(channel.percentiles),
            "mean": rounded(channel.mean),
            # Constant intensities are not divided.
            "std": rounded(channel.std) or 1.0,
        }
    return checked(Channel, document, f"The intensities of channel {channel.name}")


def outward(low_high: tuple[float, float]) -> tuple[float, float]:
    """A range in 6 significant digits, rounded outwards so that it contains both ends."""
    return rounded(low_high[0], math.floor), rounded(low_high[1], math.ceil)


def rounded(value: float, how: Callable[[float], int] = round) -> float:
    """A value in 6 significant digits."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 5)
    return float(f"{how(value / unit) * unit:.6g}")
