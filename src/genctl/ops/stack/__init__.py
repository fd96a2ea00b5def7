"""The embedded stack: all that genctl needs, as child processes on one folder, for one user."""
