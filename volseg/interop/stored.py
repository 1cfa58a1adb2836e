"""What values that nnU-Net stored have in common."""

from pydantic import ConfigDict

from volseg.config import Frozen


class Stored(Frozen):
    """A part of a JSON file that nnU-Net wrote; keys that predicting does not need are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")
