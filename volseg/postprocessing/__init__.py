"""Component rules: which connected components of a label are kept, chosen on validation cases, applied to results."""
