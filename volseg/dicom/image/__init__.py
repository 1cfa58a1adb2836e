"""What DICOM objects that are images consist of."""
