"""Optimizers of a unit: the same bits on every machine."""
