"""Hold small tools that know nothing of the domain."""
