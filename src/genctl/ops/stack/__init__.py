"""Run the embedded stack: all that genctl needs, as child processes in one folder, for one user."""
