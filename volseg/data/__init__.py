"""Scans and label images: reading, checking, writing, grids, preprocessing, data sets, batches, phantoms."""
