"""UIDs by name: the same names give the same UID."""

import hashlib
import uuid


def derived_uid(*names: str) -> str:
    """The UID of what has these names.

    Returns:
        2.25 and a UUID as a decimal number, DICOM PS3.5 B.2; the UUID is of version 5 in RFC 9562, by name.
    """
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"
