"""DICOM results in the real OHIF viewer."""
