"""Reading compared with other readers."""
