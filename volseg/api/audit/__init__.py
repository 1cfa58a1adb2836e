"""The search for wrong labels: runs and their dataset, one case, all cases."""
