"""Hypothesis, for a machine that does other work at the same time: no deadline per example; a failure prints how to repeat it."""

from hypothesis import settings

settings.register_profile("shared machine", deadline=None, print_blob=True)
settings.load_profile("shared machine")
