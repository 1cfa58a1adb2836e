"""Image space and network space: geometry, resampling and preprocessing, as plain functions on arrays."""
