"""The version, where everything may read it without loading anything."""

__version__ = "0.1.0"
