"""Model files, configurations, datasets and archives from strangers: each is used as usual, or refused in a sentence."""
