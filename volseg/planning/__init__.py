"""From a dataset to a plan: the fingerprint, and the choices with their reasons."""
