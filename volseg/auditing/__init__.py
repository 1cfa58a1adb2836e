"""The search for wrong labels: how confidently a model contradicts a reference, and which cases stand out."""
