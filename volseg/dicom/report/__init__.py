"""Structured reports: the numbers of each label, and the document that holds them."""
