"""The three parts of a training run: before its first step, from it to the last, after it."""
