"""Propagate the failures of queued AI image jobs, cleanly and at once."""

__version__ = "0.1.0"
