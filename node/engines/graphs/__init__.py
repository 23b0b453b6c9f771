"""Captured graphs: a forward without the Python that made it."""
