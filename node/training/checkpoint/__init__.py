"""Checkpoints of a run, written unit by unit, published as a whole."""
