"""Loops and lifetimes: what runs until it is told to stop."""
