"""Pictures of results and the page about a run."""
