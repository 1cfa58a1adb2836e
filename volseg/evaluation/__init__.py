"""Comparison of label images with their references."""
