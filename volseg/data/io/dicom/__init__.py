"""Reading DICOM: which files are one volume, where its slices lie, and what their stored values mean."""

import warnings

# Odd values are judged here, by their bytes; pydicom's warnings about them would reach the console.
warnings.filterwarnings("ignore", module=r"pydicom\.")
