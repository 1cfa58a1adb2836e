"""Suspicions about a scan: what its header or its intensities say that can hardly be true, in words."""
