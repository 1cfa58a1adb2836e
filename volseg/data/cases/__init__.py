"""Training datasets: cases, labels and folds, the cache of preprocessed cases, patch sampling, batches, phantoms."""
