"""Runbooks: `model` is the YAML, `load` and `lint` read it, `run` carries it out, `page` shows it."""
