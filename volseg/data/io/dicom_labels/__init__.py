"""Label images from DICOM segmentations (SEG) and structure sets (RTSTRUCT)."""
