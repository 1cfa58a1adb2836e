"""Fine-tuning: a run that starts from a model, whose labels and channels are matched by name."""
