"""Run runbooks: `model` is the YAML, `source` and `load` read it, `run` carries it out, `page` shows it."""
