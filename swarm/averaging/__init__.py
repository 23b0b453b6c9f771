"""Replicas of training units agree on one gradient sum.

All have the same bytes, or none does. This folder knows nothing of models: a unit is a name, a contribution is a flat float32 tensor.
"""
