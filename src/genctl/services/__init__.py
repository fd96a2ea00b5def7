"""Hold what runs until it is told to stop."""
