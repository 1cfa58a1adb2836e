"""Scans and label images: geometry and preprocessing (`grid`), files (`io`) and training datasets (`cases`)."""
