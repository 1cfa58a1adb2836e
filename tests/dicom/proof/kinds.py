"""Every way in which volseg writes a DICOM object: formats with their options."""

from importlib import import_module

from volseg.api.outputs import find_format, format_names


def dicom_outputs() -> list[str]:
    """What `save` takes as `to`: each format about a DICOM series alone, and with each of its options."""
    found = []
    for name in format_names():
        if find_format(name).needs_dicom:
            options = getattr(import_module(f"volseg.api.outputs.{name.replace('-', '_')}"), "OPTIONS", {})
            found += [name, *(f"{name}:{option}" for option in options)]
    return found


def suffix_of(output: str) -> str:
    """The end of a file's name that tells it from those of other outputs: .labelmap.seg.dcm"""
    return "".join(f".{option}" for option in output.split(":")[1:]) + (find_format(output).suffix or "")
