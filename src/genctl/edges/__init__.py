"""One technology each: PostgreSQL, SQS, the providers."""
