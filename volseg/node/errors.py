"""Errors inside a node; none of them ends it."""

from volseg.errors import InputError, ResourceError, VolsegError

# Refused: SOP class not supported (DICOM PS3.7 C.5.23).
CLASS_NOT_SUPPORTED = 0x0122


class FullDiskError(ResourceError):
    """The disk has no room for an object; the peer may send it again later."""


class ModelError(VolsegError):
    """A model cannot be loaded, whatever the series; work for it is tried again."""


class ObjectError(InputError):
    """What was received is no DICOM object that can be kept."""


class DeliveryError(VolsegError):
    """The archive is away, or does not take an object now."""


class RefusedClassError(DeliveryError):
    """The archive does not take objects of this SOP class."""
