"""Readers of image files, one module per format: what the header states, and voxels that were counted first."""
