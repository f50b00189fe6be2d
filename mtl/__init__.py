"""Multi-task learning with the graph cut at the shared features; see README.md."""

__version__ = "0.1.0"
