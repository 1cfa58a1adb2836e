"""What `predict` does to one case once it is segmented."""
