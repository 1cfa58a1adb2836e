"""Losses, schedule, state and the loop; data and validation come in as plain callables."""
