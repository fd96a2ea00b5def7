"""genctl: failures of queued AI image jobs, propagated cleanly and at once."""

__version__ = "0.1.0"
