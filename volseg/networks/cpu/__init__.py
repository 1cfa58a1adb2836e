"""Faster versions of torch layers for the CPU, with the same parameters and results; and memory for feature maps."""
