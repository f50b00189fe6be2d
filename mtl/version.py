"""The version, read where nothing else may be imported: by the build, and by what records a run."""

__version__ = "0.2.0"
