"""A run on disk: its folder, its settings, its log and its metrics."""
