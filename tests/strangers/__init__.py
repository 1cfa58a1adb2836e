"""Model files, configurations, datasets and archives from strangers: each is used, or refused in a sentence."""
