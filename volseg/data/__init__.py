"""Scans and label images. `grid` is below `io`, and `io` below `cases`."""
