"""DICOM objects that results are written as."""
