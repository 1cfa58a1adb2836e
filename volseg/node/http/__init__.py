"""HTTP of a node: objects in by DICOMweb, and what other programs ask of it."""
