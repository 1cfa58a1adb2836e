"""DICOM objects about a source series: what segmentations, structure sets, reports and pictures of it share."""
