"""Label images against their references."""
