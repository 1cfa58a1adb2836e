"""Previews of results and the report of a training run."""
