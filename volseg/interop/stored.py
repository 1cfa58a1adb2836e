"""The base class of documents that nnU-Net wrote."""

from pydantic import ConfigDict

from volseg.config import Frozen


class Stored(Frozen):
    """A part of a JSON file that nnU-Net wrote; keys that prediction does not need are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")
