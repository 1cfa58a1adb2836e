"""Files of scans and label images: finding them, reading them with all checks, and writing them."""
