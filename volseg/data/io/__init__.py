"""Files of scans and label images: which there are, reading with all checks, and writing."""
