"""Wrap one technology in each module: PostgreSQL, SQS, HTTP."""
