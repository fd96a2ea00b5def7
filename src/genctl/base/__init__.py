"""Small tools without domain."""
