"""Propagate the failures of queued AI image jobs, cleanly and at once."""

__version__ = "0.2.0"
