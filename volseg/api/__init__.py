"""The public API: the only package that wires the others together."""
