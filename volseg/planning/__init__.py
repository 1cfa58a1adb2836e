"""From a data set to a plan: the fingerprint, and the choices with their reasons."""
