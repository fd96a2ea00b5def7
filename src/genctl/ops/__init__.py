"""Do what a person runs: each module is the work of a command."""
