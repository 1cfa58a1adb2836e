"""DICOM results measured with other software."""
