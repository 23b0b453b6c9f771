"""A run file: what a person writes, and what follows from it."""
