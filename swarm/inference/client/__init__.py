"""A session as its client sees it."""
