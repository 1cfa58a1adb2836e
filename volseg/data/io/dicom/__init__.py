"""Reading DICOM: which files are one volume, where its slices lie, and what their stored values mean."""
