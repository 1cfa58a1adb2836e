"""What makes the scans and datasets that are measured on."""
