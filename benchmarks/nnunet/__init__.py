"""The nnU-Net side of the comparisons."""
