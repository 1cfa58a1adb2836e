"""What the label image of one case says, and how often cases of several datasets are sampled."""
