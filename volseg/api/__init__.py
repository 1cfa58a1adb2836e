"""What users call: the only place that wires the packages together."""
